"""The learning rate of each step: a pure function, so that resuming needs no scheduler state.

The shapes are those of `transformers.get_scheduler`, which a test holds them to; the warm-up begins
at one part and not at nothing, so that no step is without effect.
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
    """The rate of step `step`, counted from 0, of a run whose highest rate is `peak`."""
    return peak * rate_share(
        config.schedule,
        step=step,
        total_steps=plan.total_steps,
        warmup_steps=plan.warmup_steps,
    )


def rate_share(schedule: str, *, step: int, total_steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate for step `step`, counted from 0."""
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
            return math.sqrt(timescale / (step - warmup_steps + timescale))
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "cosineWithRestarts":
            cycle = (RESTART_CYCLES * progress) % 1.0
            return 0.0 if progress >= 1.0 else 0.5 * (1.0 + math.cos(math.pi * cycle))
        case "linear":
            return 1.0 - progress
        case "polynomial":
            end = POLYNOMIAL_END_SHARE
            return float((1.0 - end) * (1.0 - progress) ** POLYNOMIAL_POWER + end)
    raise ValueError(f"unknown schedule {schedule}")
