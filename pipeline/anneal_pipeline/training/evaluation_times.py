"""When the held-out rows are evaluated while training: a pure function of the evaluations so far.

What was evaluated is in every checkpoint, so a resumed run evaluates where the uninterrupted one
does. `evaluation.schedule: adaptive` spends evaluations where they tell something: it halves the
interval while the watched metric moves, for better or worse, and doubles it while it rests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from anneal_pipeline.config.steps import StepPlan

MOVING = 0.02
"""Share of its value by which the metric differs from one evaluation to the next: from here on the
next one comes after half as many steps."""
RESTING = 0.005
"""Below this share the next one comes after twice as many. A quarter of MOVING: half the steps move
the metric about half as far, so one halving does not call for the doubling that undoes it."""
FACTOR_MAX = 4
"""The interval stays between a quarter of `evaluation.everySteps` and four times of it."""


def is_due(
    schedule: Literal["fixed", "adaptive"],
    *,
    plan: StepPlan,
    step: int,
    last_step: int,
    values: Sequence[float],
) -> bool:
    """Whether to evaluate once `step` steps are done.

    `last_step` was the last one evaluated (0: none), `values` are those of the watched metric at
    each evaluation so far; `fixed` does without. Before the first step never: the adapters add
    nothing yet, that would measure the base again. After the last step always.
    """
    if step == 0:
        return False
    if step == plan.total_steps:
        return True
    if schedule == "fixed":
        return step % plan.evaluation_steps == 0
    return step - last_step >= interval(values, every_steps=plan.evaluation_steps)


def interval(values: Sequence[float], *, every_steps: int) -> int:
    """Steps from the last evaluation to the next: `every_steps` until two can be compared."""
    factor = 1.0
    for before, value in pairwise(values):
        change = _change(value, before=before)
        if change >= MOVING:
            factor = max(factor / 2, 1 / FACTOR_MAX)
        elif change < RESTING:
            factor = min(factor * 2, FACTOR_MAX)
    return max(1, round(every_steps * factor))


def _change(value: float, *, before: float) -> float:
    """Share of `before` by which `value` differs from it; what is no number is a great change."""
    if not (math.isfinite(value) and math.isfinite(before)):
        return math.inf
    if before == 0.0:
        return 0.0 if value == 0.0 else math.inf
    return abs(value / before - 1.0)
