"""SIGKILL between two micro-batches of an accumulation window, twice, and the same bits at the end.

Every attempt is a process of its own. What had been added to the gradients is lost with it, and the
next attempt takes the whole step again, with the same rows and the same dropout.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.integration.pipeline.killed_attempt import run_attempt
from tests.integration.pipeline.processes import run_ranks, values_of
from tests.integration.pipeline.test_exact_resume import METHODS, final_state

from anneal_pipeline.checkpoint.manifest import order_of

SECTIONS: dict[str, Any] = {
    "training": {"maxSteps": 6, "batchSize": 6, "microBatchSize": 2},
    "dataset": {"split": {"train": 0.9, "validation": 0.1}},
    "evaluation": {"everySteps": 3, "numGenerations": 0, "baseline": False},
    "checkpoint": {"everySteps": 2, "keep": 3},
    "export": {"verify": False},
}
"""Three micro-batches a step; steps 1 to 5 are an epoch, whose last step has half of them."""
FATAL = [(4, 1), (6, 2)]
"""Step, and the micro-batch after which the process dies."""


@pytest.mark.parametrize("method", ["fp32 LoRA", "NF4 in fp32"])
def test_sigkill_between_micro_batches_twice_ends_bit_equal(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, method: str
) -> None:
    inputs = {"model_dir": model_dir, "rows": rows}
    data = {**SECTIONS, "tuning": METHODS[method]}
    meeting = tmp_path / "meeting"

    def attempt(root: Path, number: int, fatal: tuple[int, int] | None) -> Any:
        [ended] = run_ranks(
            run_attempt, root, data, number, fatal, inputs, meeting=meeting, count=1
        )
        if fatal is not None:
            assert ended.exit_code == -signal.SIGKILL, ended.error
            return None
        [steps] = values_of([ended])
        return steps

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert attempt(whole, 1, None) == [1, 2, 3, 4, 5, 6]
    for number, fatal in enumerate(FATAL, start=1):
        attempt(killed, number, fatal)
        newest = order_of(kit.make_store(killed).names()[0])
        assert newest is not None
        assert 0 < newest[0] < fatal[0]
    last = attempt(killed, len(FATAL) + 1, None)
    assert last[-1] == 6
    assert last[0] <= FATAL[-1][0], "the step that was cut off is taken again from its beginning"
    assert final_state(killed) == final_state(whole)
