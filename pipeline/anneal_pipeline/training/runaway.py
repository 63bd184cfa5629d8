"""Rules over the series of training losses: running away, healthy, flat.

All compare means over a few steps with earlier means, so that one hard batch is no alarm, and with
an absolute distance as well, so that a loss near zero may flicker.
"""

from __future__ import annotations

from collections.abc import Sequence

WINDOW = 10
"""Steps in a mean."""
RUNAWAY_NATS = 1.0
"""A mean this much above the lowest earlier one has run away ..."""
RUNAWAY_SHARE = 0.5
"""... or this share of the lowest one, whichever is more."""
LOOK_BACK = 500
"""Steps the rules look at; enough, and the same work at every step of a long run."""
FLAT_STEPS = 50
"""Steps over which a loss that does not fall counts as flat."""
FLAT_SHARE = 0.01
"""A fall of less than this share over so many steps is none."""


def means(losses: Sequence[float]) -> list[float]:
    """Mean of every full window, in order; empty while there are too few steps."""
    if len(losses) < WINDOW:
        return []
    total = sum(losses[:WINDOW])
    found = [total / WINDOW]
    for index in range(WINDOW, len(losses)):
        total += losses[index] - losses[index - WINDOW]
        found.append(total / WINDOW)
    return found


def limit_over(lowest: float) -> float:
    """The mean from which on a loss has run away."""
    return lowest + max(RUNAWAY_NATS, RUNAWAY_SHARE * lowest)


def has_run_away(losses: Sequence[float]) -> bool:
    found = means(losses)
    return len(found) > 1 and found[-1] > limit_over(min(found[:-1]))


def is_healthy(losses: Sequence[float]) -> bool:
    """False when the last mean is over half the way to running away."""
    found = means(losses)
    if len(found) < 2:
        return True
    lowest = min(found[:-1])
    return found[-1] <= lowest + (limit_over(lowest) - lowest) / 2


def is_flat(losses: Sequence[float]) -> bool:
    """True when the mean has not fallen over the last FLAT_STEPS steps."""
    if len(losses) < FLAT_STEPS + WINDOW:
        return False
    before = sum(losses[-FLAT_STEPS - WINDOW : -FLAT_STEPS]) / WINDOW
    now = sum(losses[-WINDOW:]) / WINDOW
    return now > before * (1 - FLAT_SHARE)
