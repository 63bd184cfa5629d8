"""The learning rate of each step: a pure function, so that resuming needs no scheduler state.

The shapes are those of `transformers.get_scheduler`, which a test holds them to; the warm-up begins
at one part and not at nothing, so that no step is without effect. `training.minLearningRate` is a
floor under the fall: shapes that have an end are drawn down to it in place of their own,
inverseSqrt stops there. The warm-up still rises from the bottom.
"""

from __future__ import annotations

import math

from anneal_pipeline.config.steps import StepPlan
from anneal_pipeline.config.training import TrainingConfig

RESTART_CYCLES = 3
"""Cycles of cosineWithRestarts."""
POLYNOMIAL_POWER = 2.0
POLYNOMIAL_END_SHARE = 1e-3
"""Where polynomial ends, as a share of the peak."""
INVERSE_SQRT_TIMESCALE = 10_000
"""Steps after which inverseSqrt without a warm-up has fallen to 1/sqrt(2)."""


def learning_rate(config: TrainingConfig, *, plan: StepPlan, step: int, peak: float) -> float:
    """The rate of step `step`, counted from 0, of a run whose highest rate is `peak`.

    `peak` is below the configured rate once a recovery has lowered it; the floor goes down with it.
    """
    least = config.min_learning_rate
    return peak * rate_share(
        config.schedule,
        step=step,
        total_steps=plan.total_steps,
        warmup_steps=plan.warmup_steps,
        floor=None if least is None else least / config.learning_rate,
    )


def rate_share(
    schedule: str, *, step: int, total_steps: int, warmup_steps: int, floor: float | None = None
) -> float:
    """Share of the peak learning rate for step `step`, counted from 0.

    `floor` is the least share after the warm-up; None: that of the schedule itself.
    """
    if schedule == "constant":
        return 1.0
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    match schedule:
        case "constantWithWarmup":
            return 1.0
        case "inverseSqrt":
            timescale = warmup_steps or INVERSE_SQRT_TIMESCALE
            return max(floor or 0.0, math.sqrt(timescale / (step - warmup_steps + timescale)))
        case "cosine":
            return _down_to(floor, share=0.5 * (1.0 + math.cos(math.pi * progress)))
        case "cosineWithRestarts":
            cycle = (RESTART_CYCLES * progress) % 1.0
            share = 0.0 if progress >= 1.0 else 0.5 * (1.0 + math.cos(math.pi * cycle))
            return _down_to(floor, share=share)
        case "linear":
            return _down_to(floor, share=1.0 - progress)
        case "polynomial":
            end = POLYNOMIAL_END_SHARE if floor is None else floor
            return _down_to(end, share=float((1.0 - progress) ** POLYNOMIAL_POWER))
    raise ValueError(f"unknown schedule {schedule}")


def _down_to(end: float | None, *, share: float) -> float:
    """A fall from 1 to 0 drawn so that it ends at `end`."""
    return share if end is None else (1.0 - end) * share + end
