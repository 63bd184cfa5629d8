"""One run of the pipeline, from files and a config to files and a result.

Writes into `workspace`, which becomes the job's output folder: `config.json`, `data/`,
`milestones/`, `artifacts/`, `evaluation/`. Checkpoints go to the store. A stage whose inputs'
hashes match a finished one is not run again, so an attempt that finds the `data/` of an earlier one
trains on exactly that.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from anneal_pipeline.checkpoint.store import CheckpointStore
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import resolved
from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.micro_batch import RoomOf, room_of_rank
from anneal_pipeline.observer import Observer
from anneal_pipeline.opening import Inputs
from anneal_pipeline.run import Run, open_run
from anneal_pipeline.training.ranks import Ranks

__all__ = ["DatasetFiles", "PipelineResult", "run_pipeline"]

CONFIG_NAME = "config.json"


@dataclass(frozen=True, kw_only=True)
class PipelineResult:
    interrupted: bool
    """True: asked to stop; `checkpoint` holds everything, what follows training is empty."""
    step: int
    total_steps: int
    checkpoint: str | None
    """Name of the newest checkpoint; None when stopped before training began."""
    train_seconds: float
    """Of this attempt."""
    dataset_digest: str
    config_hash: str
    base_metrics: Mapping[str, float]
    tuned_metrics: Mapping[str, float]
    adapter_dir: Path | None
    artefact_digest: str | None
    """SHA-256 of `artifacts/manifest.json`, in hex."""


def run_pipeline(
    config: PipelineConfig,
    *,
    workspace: Path,
    model_dir: Path,
    dataset_files: DatasetFiles | None,
    checkpoints: CheckpointStore,
    observer: Observer,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    room_of: RoomOf = room_of_rank,
    clock: Callable[[], float] = time.monotonic,
) -> PipelineResult:
    """Prepare data, load and adapt the model, train, evaluate, export.

    `dataset_files` None takes the `data/` that an earlier attempt prepared. With `world_size` > 1
    the default process group is initialised, all ranks share `workspace`, and each rank's store has
    a scratch folder of its own. A `UserError` means the job as written cannot succeed; a planned
    stop returns with `interrupted`, or raises `StopRequestedError` while there is nothing to save.
    """
    ranks = Ranks(rank=rank, world_size=world_size, device=device)
    with ranks.together():
        workspace.mkdir(parents=True, exist_ok=True)
        if ranks.is_first:
            _write_config(config, workspace=workspace, observer=observer)
    with tempfile.TemporaryDirectory(dir=workspace, prefix=".scratch-") as scratch:
        inputs = Inputs(
            config=config,
            workspace=workspace,
            scratch=Path(scratch),
            model_dir=model_dir,
            dataset_files=dataset_files,
            checkpoints=checkpoints,
            observer=observer,
            ranks=ranks,
            room_of=room_of,
            clock=clock,
        )
        run = open_run(inputs)
        if rank == 0:
            known = resolved(config, run.opened.plan)
            _write_config(known, workspace=workspace, observer=observer)
        return _go_through(run, clock=clock)


def _write_config(config: PipelineConfig, *, workspace: Path, observer: Observer) -> None:
    path = workspace / CONFIG_NAME
    path.write_text(json.dumps(config.to_data(), indent=2) + "\n", encoding="utf-8")
    observer.on_output(path)


def _go_through(run: Run, *, clock: Callable[[], float]) -> PipelineResult:
    finished = run.measure_base()
    began = clock()
    finished = finished and run.train()
    train_seconds = clock() - began
    adapter_dir = artefact_digest = None
    if finished and run.compare():
        adapter_dir, artefact_digest = run.export()
    complete = finished and adapter_dir is not None
    return PipelineResult(
        interrupted=not complete,
        step=run.state.step,
        total_steps=run.opened.plan.total_steps,
        checkpoint=run.trainer.saver.last_checkpoint,
        train_seconds=train_seconds,
        dataset_digest=run.opened.data.report.digest,
        config_hash=run.inputs.config.mathematical_hash(),
        base_metrics=run.comparison.metrics("base", state=run.state) if complete else {},
        tuned_metrics=run.comparison.metrics("tuned", state=run.state) if complete else {},
        adapter_dir=adapter_dir,
        artefact_digest=artefact_digest,
    )
