"""What one attempt of a job has to know, in plain data: it travels to the ranks.

Light on purpose: the driver imports it without torch, transformers or MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anneal_operator.api.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class AttemptFolders:
    """Where an attempt works; all local."""

    scratch: Path

    @property
    def stop_file(self) -> Path:
        """Its existence asks every rank to save a checkpoint and return."""
        return self.scratch / "stop"

    @property
    def outcomes(self) -> Path:
        """One file per rank that has something to say."""
        return self.scratch / "outcomes"

    @property
    def logs(self) -> Path:
        return self.scratch / "logs"

    @property
    def inputs(self) -> Path:
        return self.scratch / "inputs"

    @property
    def checkpoints(self) -> Path:
        return self.scratch / "checkpoints"

    @property
    def workspace(self) -> Path:
        return self.scratch / "output"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Everything one attempt needs to know."""

    config: RunConfig
    number: int
    trusts_prepared_data: bool
    """True: where an earlier attempt has left its `data/`, the dataset is not read again."""
    writer_name: str
    """Who writes its checkpoints: the pod's uid, cut to 8."""
    run_id: str
    folders: AttemptFolders


def attempt_of(settings: dict[str, Any]) -> Attempt:
    return Attempt(
        config=RunConfig.model_validate_json(settings["config"]),
        number=settings["number"],
        trusts_prepared_data=settings["trusts_prepared_data"],
        writer_name=settings["writer_name"],
        run_id=settings["run_id"],
        folders=AttemptFolders(scratch=Path(settings["scratch"])),
    )


def settings_of(attempt: Attempt) -> dict[str, Any]:
    """The attempt as plain data, which survives any version of pickle."""
    return {
        "config": attempt.config.model_dump_json(by_alias=True, exclude_none=True),
        "number": attempt.number,
        "trusts_prepared_data": attempt.trusts_prepared_data,
        "writer_name": attempt.writer_name,
        "run_id": attempt.run_id,
        "scratch": str(attempt.folders.scratch),
    }
