"""The held-out rows while training: measured when that is due, and kept in the state of the run.

What is done with the figures is for others: `best` keeps the best weights, `early_stopping` says
when there is nothing more to wait for, the diagnoses look for what is odd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from anneal_pipeline.config.steps import StepPlan
from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.data.files import TEST, VALIDATION
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.evaluation.perplexity import RESPONSE_PERPLEXITY, Evaluator
from anneal_pipeline.evaluation.report import TUNED
from anneal_pipeline.observer import STAGE_TRAINING_EVALUATION, Observer
from anneal_pipeline.training.evaluation_times import is_due
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.state import Evaluated, RunState


@dataclass(frozen=True, kw_only=True)
class HeldOutWatch:
    """Measures one split between steps."""

    schedule: Literal["fixed", "adaptive"]
    plan: StepPlan
    splits: Mapping[str, PreparedSplit]
    evaluator: Evaluator
    metric: str
    """What the tuned model is judged by."""
    observer: Observer
    ranks: Ranks
    clock: Callable[[], float]

    @property
    def split(self) -> str | None:
        """The split that is watched; None where nothing is held out."""
        return next((name for name in (VALIDATION, TEST) if len(self.splits[name])), None)

    def is_due(self, state: RunState) -> bool:
        """Whether to measure where the run stands; not where that was done."""
        if self.split is None or state.evaluated_step == state.step:
            return False
        return is_due(
            self.schedule,
            plan=self.plan,
            step=state.step,
            last_step=state.evaluated_step,
            values=self.values(self.metric, state=state) if self.schedule == "adaptive" else (),
        )

    def measure(self, state: RunState) -> Mapping[str, float] | None:
        """The metrics of the model as it is, which the state has from then on.

        None when asked to stop on the way, or where nothing is held out: the state is as it was.
        """
        split = self.split
        if split is None:
            return None
        began = self.clock()
        measured = self.evaluator.measure(self.splits[split], stage=STAGE_TRAINING_EVALUATION)
        if measured is None:
            return None
        state.evaluated_step = state.step
        state.evaluations.append(
            Evaluated(step=state.step, subject=TUNED, split=split, metrics=measured.metrics)
        )
        if self.ranks.is_first:
            seconds = self.clock() - began
            self.observer.on_evaluation(
                measured.report(step=state.step, subject=TUNED, split=split, seconds=seconds)
            )
        return measured.metrics

    def values(self, metric: str, *, state: RunState, since: int = 0) -> list[float]:
        """A metric at every evaluation while training, in order, from step `since` on."""
        return [value for step, value in self.points(metric, state=state) if step >= since]

    def points(self, metric: str, *, state: RunState) -> list[tuple[int, float]]:
        """The same, with the steps."""
        return [
            (done.step, done.metrics[metric])
            for done in state.evaluations
            if done.subject == TUNED and done.split == self.split
            if metric in done.metrics  # another one may have been watched before a resume
        ]


def watched_metric(config: TrainingConfig) -> str:
    """What the tuned model is judged by while training."""
    early = config.early_stopping
    return early.metric if early is not None else RESPONSE_PERPLEXITY
