"""The best checkpoint: kept when an evaluation is the best so far, and taken up as the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from anneal_pipeline.checkpoint.store import Best
from anneal_pipeline.observer import EVENT_BEST_RESTORED, EVENT_WARNING
from anneal_pipeline.training.early_stopping import gain
from anneal_pipeline.training.events import Events
from anneal_pipeline.training.rank_allocator import RankAllocator
from anneal_pipeline.training.resume import share_checkpoint
from anneal_pipeline.training.saver import Saver
from anneal_pipeline.training.state import RunState, load_weights


@dataclass(frozen=True, kw_only=True)
class BestCheckpoint:
    """Which one it is stands in the state, so that a resumed run goes on comparing with it."""

    metric: str
    """What evaluations are judged by."""
    saver: Saver
    allocator: RankAllocator | None
    """More ranks than the budget are no result, so evaluations count only once it is settled."""
    events: Events

    def keep_if_better(self, state: RunState, metrics: Mapping[str, float]) -> None:
        """Save the run where it stands if its evaluation there, `metrics`, is the best so far."""
        value, best = metrics[self.metric], state.best_value
        if not self._is_judged(state):
            return
        if math.isnan(value) or (best is not None and gain(self.metric, value, over=best) <= 0):
            return
        state.best_value = value
        state.best_step = state.step
        state.best_checkpoint = self.saver.checkpoints.name_of(
            state.step, recoveries=state.interventions
        )
        self.saver.save(state, cause="best")
        self.saver.ranks.first_does(lambda: self.pin(state))

    def _is_judged(self, state: RunState) -> bool:
        """Whether the model as it is may be the result; ranks that are late may not have fallen."""
        return self.allocator is None or self.allocator.is_settled(state.step)

    def pin(self, state: RunState) -> None:
        """Let `best.json` name what the state knows as the best, unless it does."""
        if state.best_checkpoint is None or state.best_step is None or state.best_value is None:
            return
        best = Best(
            name=state.best_checkpoint,
            step=state.best_step,
            metric=self.metric,
            value=state.best_value,
        )
        if self.saver.checkpoints.best() != best:
            self.saver.checkpoints.pin_best(best)

    def take_up(self, state: RunState) -> None:
        """Make its weights the result, unless the model has them; say so where it is unreadable."""
        best = state.best_checkpoint
        if best is None or state.best_step == state.step:
            return
        saved = share_checkpoint(
            lambda: self.saver.checkpoints.fetch(best),
            checkpoints=self.saver.checkpoints,
            ranks=self.saver.ranks,
        )
        if saved is None:
            self.events.tell(
                EVENT_WARNING,
                f"The best checkpoint {best} cannot be read: the result is that of the last step",
            )
            return
        load_weights(saved.folder, self.saver.parameters)
        state.result_step = state.best_step
        self.events.tell(
            EVENT_BEST_RESTORED,
            f"The result is that of step {state.best_step}, the best evaluation: "
            f"{self.metric} {state.best_value:.4g}",
            step=state.best_step,
        )
