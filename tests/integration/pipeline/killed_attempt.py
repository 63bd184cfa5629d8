"""One attempt of a run in a process of its own, killed between two micro-batches of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.pipeline.processes import die
from tests.unit.pipeline import kit

from anneal_pipeline.training.batches import Batch
from anneal_pipeline.training.loss import LogitsPath


def run_attempt(
    rank: int,
    count: int,
    root: Path,
    data: dict[str, Any],
    attempt: int,
    fatal: tuple[int, int] | None,
    inputs: dict[str, Path],
) -> list[int]:
    """The steps that the attempt took.

    `fatal` is a step and one of its micro-batches, from 1: once its gradients are added, SIGKILL.
    """
    observer = kit.RecordingObserver()
    backward = LogitsPath.backward
    added: dict[int, int] = {}

    def deadly(self: LogitsPath, batch: Batch, **options: Any) -> float:
        loss = backward(self, batch, **options)
        taken = [report.step for report in observer.steps]
        resumed = [int(m.split()[3]) for name, m in observer.events if name == "resumed"]
        step = (taken or resumed or [0])[-1] + 1
        added[step] = added.get(step, 0) + 1
        if (step, added[step]) == fatal:
            die()
        return loss

    LogitsPath.backward = deadly  # type: ignore[method-assign]  # this process is its own
    try:
        config = kit.make_config(**data)
        kit.run(root, config, attempt=attempt, observer=observer, **inputs)
    finally:
        LogitsPath.backward = backward  # type: ignore[method-assign]
    return [report.step for report in observer.steps]
