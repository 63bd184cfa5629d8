"""Rules over losses: what is an alarm, and what is the noise of training."""

from __future__ import annotations

import pytest

from anneal_pipeline.training.early_stopping import gain, stale_evaluations
from anneal_pipeline.training.runaway import (
    FLAT_STEPS,
    WINDOW,
    has_run_away,
    is_flat,
    is_healthy,
    means,
)

LOW = [2.0] * 20
NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "away", "healthy"),
    [
        pytest.param([], False, True, id="nothing yet"),
        pytest.param([9.0] * (WINDOW - 1), False, True, id="too few steps for a mean"),
        pytest.param([8.0 - n / 10 for n in range(40)], False, True, id="falling"),
        pytest.param(LOW, False, True, id="constant is not diverging"),
        pytest.param([*LOW, 9.0], False, False, id="one hard batch only looks unwell"),
        pytest.param([*LOW, *[3.0] * WINDOW], False, False, id="a mean at the limit"),
        pytest.param([*LOW, *[3.1] * WINDOW], True, False, id="a mean over the limit"),
        pytest.param([*LOW, 6.0, 7.0, 8.0], True, False, id="a run away within a few steps"),
        pytest.param([0.01] * 20 + [0.5] * 10, False, True, id="near zero it may flicker"),
        pytest.param([*[8.0] * 20, *[11.0] * 10], False, False, id="high losses by their share"),
        pytest.param([*[8.0] * 20, *[12.5] * 10], True, False, id="over that share"),
    ],
)
def test_running_away_is_a_mean_far_above_the_lowest_before(
    losses: list[float], away: bool, healthy: bool
) -> None:
    assert has_run_away(losses) is away
    assert is_healthy(losses) is healthy


def test_means_are_over_full_windows_only() -> None:
    assert means([1.0] * WINDOW) == [1.0]
    assert means([float(n) for n in range(12)]) == pytest.approx([4.5, 5.5, 6.5])


def test_flat_is_no_fall_over_many_steps() -> None:
    assert not is_flat([3.0] * (FLAT_STEPS + WINDOW - 1))
    assert is_flat([3.0] * (FLAT_STEPS + WINDOW))
    assert not is_flat([3.0 - n / 100 for n in range(FLAT_STEPS + WINDOW)])


@pytest.mark.parametrize(
    ("values", "min_delta", "stale"),
    [
        ([], 0.0, 0),
        ([3.0], 0.0, 0),
        ([3.0, 2.9, 2.8], 0.0, 0),
        ([3.0, 3.0, 3.1], 0.0, 2),
        ([3.0, 3.1, 2.9, 3.0], 0.0, 1),
        ([3.0, 2.9, 2.8, 2.7], 0.25, 0),
        ([3.0, 2.9, 2.8], 0.25, 2),
        ([NAN, 3.0, 2.9], 0.0, 0),
        ([NAN, 3.0, NAN, 3.0], 0.0, 2),
        ([NAN, NAN, NAN], 0.0, 0),
    ],
    ids=str,
)
def test_tiny_improvements_do_not_reset_patience(
    values: list[float], min_delta: float, stale: int
) -> None:
    assert stale_evaluations("responsePerplexity", values, min_delta=min_delta) == stale


def test_accuracy_is_better_when_higher() -> None:
    assert gain("tokenAccuracy", 0.9, over=0.8) == pytest.approx(0.1)
    assert gain("perplexity", 0.9, over=0.8) == pytest.approx(-0.1)
    assert stale_evaluations("tokenAccuracy", [0.5, 0.4, 0.6], min_delta=0.0) == 0
    assert stale_evaluations("perplexity", [3.0, NAN, NAN], min_delta=0.0) == 2
