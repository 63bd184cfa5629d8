"""When held-out quality no longer improves: decided by the evaluations so far, and nothing else.

What was evaluated is in every checkpoint, so a resumed run decides as the uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from anneal_pipeline.config.training import EarlyStoppingConfig
from anneal_pipeline.evaluation.perplexity import TOKEN_ACCURACY
from anneal_pipeline.observer import EVENT_EARLY_STOP, EVENT_WARNING
from anneal_pipeline.training.events import Events
from anneal_pipeline.training.held_out import HeldOutWatch
from anneal_pipeline.training.state import RunState

HIGHER_IS_BETTER = frozenset({TOKEN_ACCURACY})


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    config: EarlyStoppingConfig
    watch: HeldOutWatch
    total_steps: int
    judged_since: int
    """The step from which on evaluations count: more ranks than the budget are no result."""
    events: Events

    def warn_if_idle(self) -> None:
        """Say it where no evaluation that counts comes before the last step."""
        if self.judged_since >= self.total_steps:
            self.events.tell(
                EVENT_WARNING,
                f"training.earlyStopping has no effect: ranks fall until step {self.judged_since} "
                f"of {self.total_steps}, and no evaluation before counts; lower "
                "tuning.lora.rankAllocation.endShare, or remove training.earlyStopping",
            )

    def is_time(self, state: RunState) -> bool:
        """Whether to end training where the run stands, which is told."""
        if state.best_value is None:
            return False
        metric, min_delta = self.config.metric, self.config.min_delta
        values = self.watch.values(metric, state=state, since=self.judged_since)
        stale = stale_evaluations(metric, values, min_delta=min_delta)
        if stale < self.config.patience:
            return False
        self.events.tell(
            EVENT_EARLY_STOP,
            f"Stopping early at step {state.step} of {self.total_steps}: {metric} did not improve "
            f"by more than {min_delta:g} in {stale} evaluations; the best is "
            f"{state.best_value:.4g} at step {state.best_step}",
            step=state.step,
            bestStep=state.best_step,
        )
        return True


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
