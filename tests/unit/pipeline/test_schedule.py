"""The learning rate has the shapes of transformers' schedules behind its warm-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import get_scheduler
from transformers.optimization import (
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)

from anneal_pipeline.training.schedule import (
    POLYNOMIAL_END_SHARE,
    POLYNOMIAL_POWER,
    RESTART_CYCLES,
    rate_share,
)

TOTAL, WARMUP = 40, 5


def named(name: str) -> Callable[[torch.optim.Optimizer], Any]:
    return lambda optimizer: get_scheduler(name, optimizer, WARMUP, TOTAL)


CASES = {
    "cosine": named("cosine"),
    "linear": named("linear"),
    "constantWithWarmup": named("constant_with_warmup"),
    "inverseSqrt": named("inverse_sqrt"),
    "cosineWithRestarts": lambda optimizer: get_cosine_with_hard_restarts_schedule_with_warmup(
        optimizer, WARMUP, TOTAL, num_cycles=RESTART_CYCLES
    ),
    "polynomial": lambda optimizer: get_polynomial_decay_schedule_with_warmup(
        optimizer, WARMUP, TOTAL, lr_end=POLYNOMIAL_END_SHARE, power=POLYNOMIAL_POWER
    ),
}


@pytest.mark.parametrize("schedule", CASES)
def test_equals_transformers_after_the_warm_up(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = CASES[schedule](optimizer)
    for step in range(TOTAL):
        want = reference.get_last_lr()[0]
        got = rate_share(schedule, step=step, total_steps=TOTAL, warmup_steps=WARMUP)
        if step >= WARMUP:
            assert got == pytest.approx(want, abs=1e-9), step
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("schedule", CASES)
def test_the_warm_up_rises_evenly_to_the_peak(schedule: str) -> None:
    shares = [
        rate_share(schedule, step=step, total_steps=TOTAL, warmup_steps=WARMUP)
        for step in range(WARMUP)
    ]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("schedule", [*CASES, "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_no_step_is_without_effect(schedule: str, warmup: int) -> None:
    for step in range(10):
        assert 0 < rate_share(schedule, step=step, total_steps=10, warmup_steps=warmup) <= 1
