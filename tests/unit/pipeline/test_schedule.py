"""The learning rate has the shapes of transformers' schedules behind its warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import get_scheduler
from transformers.optimization import (
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)

from anneal_pipeline.config.steps import StepPlan
from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.training.schedule import (
    POLYNOMIAL_END_SHARE,
    POLYNOMIAL_POWER,
    RESTART_CYCLES,
    learning_rate,
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


FLOOR = 0.1
FALLING = [name for name in CASES if name != "constantWithWarmup"]
WITH_FLOOR = {
    "cosine": lambda optimizer: get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, WARMUP, TOTAL, min_lr_rate=FLOOR
    ),
    "linear": lambda optimizer: get_polynomial_decay_schedule_with_warmup(
        optimizer, WARMUP, TOTAL, lr_end=FLOOR, power=1.0
    ),
    "polynomial": lambda optimizer: get_polynomial_decay_schedule_with_warmup(
        optimizer, WARMUP, TOTAL, lr_end=FLOOR, power=POLYNOMIAL_POWER
    ),
}


@pytest.mark.parametrize("schedule", WITH_FLOOR)
def test_with_a_floor_it_equals_transformers_too(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = WITH_FLOOR[schedule](optimizer)
    for step in range(TOTAL):
        want = reference.get_last_lr()[0]
        got = rate_share(schedule, step=step, total_steps=TOTAL, warmup_steps=WARMUP, floor=FLOOR)
        if step >= WARMUP:
            assert got == pytest.approx(want, abs=1e-9), step
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("schedule", FALLING)
def test_the_floor_is_kept_and_reached_and_the_warm_up_begins_below_it(schedule: str) -> None:
    total = 2000  # long enough for inverseSqrt to get there
    shares = [
        rate_share(schedule, step=step, total_steps=total, warmup_steps=15, floor=FLOOR)
        for step in range(total + 1)
    ]
    assert shares[0] == pytest.approx(1 / 15)
    assert max(shares) == shares[15] == 1.0
    assert min(shares[15:]) == pytest.approx(FLOOR, abs=1e-12)
    assert shares[total] == pytest.approx(FLOOR, abs=1e-12)


def rates(*, peak: float | None = None, **training: Any) -> list[float]:
    config = TrainingConfig.parse({"learningRate": 4e-4, **training})
    plan = StepPlan(
        total_steps=TOTAL,
        steps_per_epoch=TOTAL,
        warmup_steps=WARMUP,
        evaluation_steps=1,
        checkpoint_steps=1,
        micro_batch_size=1,
        batch_size=1,
    )
    highest = peak or config.learning_rate
    return [learning_rate(config, plan=plan, step=step, peak=highest) for step in range(TOTAL + 1)]


def test_the_least_rate_is_a_rate_and_goes_down_with_the_peak() -> None:
    whole = rates(minLearningRate=1e-4)
    assert whole[-1] == pytest.approx(1e-4)
    assert rates(minLearningRate=1e-4, peak=2e-4) == pytest.approx([r / 2 for r in whole])


@pytest.mark.parametrize("schedule", FALLING)
def test_a_least_rate_equal_to_the_peak_holds_it(schedule: str) -> None:
    after = rates(schedule=schedule, minLearningRate=4e-4)[WARMUP:]
    assert after == pytest.approx([4e-4] * len(after))


def cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


TO_THE_BIT: dict[str, Callable[[float], float]] = {
    "cosine": cosine,
    "linear": lambda progress: 1.0 - progress,
    "cosineWithRestarts": lambda progress: cosine((3 * progress) % 1.0) if progress < 1 else 0.0,
    "polynomial": lambda progress: (1.0 - 1e-3) * (1.0 - progress) ** 2.0 + 1e-3,
}


@pytest.mark.parametrize("schedule", TO_THE_BIT)
def test_without_a_floor_a_rate_is_what_it_was_to_the_last_bit(schedule: str) -> None:
    for step in range(WARMUP, TOTAL + 1):
        want = TO_THE_BIT[schedule]((step - WARMUP) / (TOTAL - WARMUP))
        assert rate_share(schedule, step=step, total_steps=TOTAL, warmup_steps=WARMUP) == want
