"""Evaluations come where the held-out metric moves, and a resumed run repeats the decisions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import pytest

from anneal_pipeline.config.steps import StepPlan
from anneal_pipeline.training.evaluation_times import interval, is_due

EVERY, TOTAL = 20, 1000


def plan_of(*, total_steps: int = TOTAL) -> StepPlan:
    return StepPlan(
        total_steps=total_steps,
        steps_per_epoch=EVERY,
        warmup_steps=0,
        evaluation_steps=EVERY,
        checkpoint_steps=100,
        micro_batch_size=1,
        batch_size=1,
    )


def evaluated(
    curve: Callable[[int], float], *, schedule: Literal["fixed", "adaptive"] = "adaptive"
) -> list[int]:
    """The steps at which a run evaluates whose metric follows `curve`."""
    steps: list[int] = []
    for step in range(TOTAL + 1):
        last = steps[-1] if steps else 0
        values = [curve(done) for done in steps]
        if is_due(schedule, plan=plan_of(), step=step, last_step=last, values=values):
            steps.append(step)
    return steps


@pytest.mark.parametrize(
    ("values", "want"),
    [
        pytest.param([], 20, id="nothing measured yet"),
        pytest.param([9.0], 20, id="nothing to compare with"),
        pytest.param([9.0, 8.0], 10, id="much better"),
        pytest.param([8.0, 9.0], 10, id="much worse"),
        pytest.param([9.0, 8.9], 20, id="a little better"),
        pytest.param([9.0, 9.0], 40, id="at rest"),
        pytest.param([9.0, 8.99, 9.0], 80, id="at rest twice"),
        pytest.param([9.0, 9.0, 9.0, 9.0, 9.0], 80, id="never more than four times"),
        pytest.param([9.0, 8.0, 7.0, 6.0, 5.0], 5, id="never less than a quarter"),
        pytest.param([9.0, 9.0, 9.0, 8.0], 40, id="moves again after a rest"),
        pytest.param([9.0, float("nan")], 10, id="no number"),
        pytest.param([0.0, 0.0], 40, id="an accuracy of nothing, twice"),
        pytest.param([0.0, 0.1], 10, id="the first right answers"),
    ],
)
def test_the_interval_follows_how_far_the_metric_moves(values: list[float], want: int) -> None:
    assert interval(values, every_steps=EVERY) == want


def test_an_interval_is_never_nothing() -> None:
    assert interval([9.0, 8.0, 7.0], every_steps=1) == 1


def fall_then_rest_then_rise(step: int) -> float:
    if step < 300:
        return 100.0 * 0.99**step
    return 5.0 if step < 700 else 5.0 * 1.01 ** (step - 700)


def test_more_often_while_it_gets_better_or_worse_and_less_often_at_rest() -> None:
    steps = evaluated(fall_then_rest_then_rise)
    better, rest, worse = (
        [step for step in steps if low < step <= high]
        for low, high in ((0, 300), (400, 700), (800, TOTAL))
    )
    fixed = evaluated(fall_then_rest_then_rise, schedule="fixed")
    assert fixed == list(range(EVERY, TOTAL + 1, EVERY))
    assert len(better) > 2 * 300 // EVERY
    assert len(rest) < 0.5 * 300 // EVERY
    assert len(worse) > 2 * 200 // EVERY
    gaps = [after - before for before, after in pairwise([0, *steps])]
    assert max(gaps) == 4 * EVERY
    assert min(gaps[:-1]) == EVERY // 4
    assert steps[-1] == TOTAL


def test_between_its_two_bounds_it_settles() -> None:
    """A metric that moves by 3 % in 20 steps and so by 1.5 % in 10: no doubling follows."""
    steps = evaluated(lambda step: 100.0 * 0.9985**step)
    gaps = {after - before for before, after in pairwise(steps[1:-1])}
    assert gaps == {10}


@pytest.mark.parametrize("schedule", ["fixed", "adaptive"])
def test_the_last_step_is_evaluated_and_the_first_boundary_is_not(
    schedule: Literal["fixed", "adaptive"],
) -> None:
    plan = plan_of(total_steps=7)
    due = [
        step for step in range(8) if is_due(schedule, plan=plan, step=step, last_step=0, values=[])
    ]
    assert due == [7]


def test_a_run_that_switches_to_adaptive_catches_up() -> None:
    """Resumed at a step further from the last evaluation than the interval is now."""
    values = [9.0, 8.0, 7.0]
    assert is_due("adaptive", plan=plan_of(), step=77, last_step=60, values=values)
