"""When held-out quality no longer improves: a pure function of the evaluations so far.

What was evaluated is in every checkpoint, so a resumed run decides as the uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from anneal_pipeline.evaluation.perplexity import TOKEN_ACCURACY

HIGHER_IS_BETTER = frozenset({TOKEN_ACCURACY})


def gain(metric: str, value: float, *, over: float) -> float:
    """How much better `value` is than `over`, in the metric's unit; negative when it is worse."""
    return value - over if metric in HIGHER_IS_BETTER else over - value


def stale_evaluations(metric: str, values: Sequence[float], *, min_delta: float) -> int:
    """How many of the last evaluations brought no gain of more than `min_delta`.

    What is no number is no gain, and counts only once there was a number to be better than.
    """
    stale = 0
    best = None
    for value in values:
        is_gain = best is None or gain(metric, value, over=best) > min_delta
        if is_gain and not math.isnan(value):
            best, stale = value, 0
        elif best is not None:
            stale += 1
    return stale
