"""Memory that grows from step to step, or is far more than was planned (S24, S8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from anneal_pipeline.diagnosis import Diagnosis
from anneal_pipeline.training.diagnoses.facts import Planned, StepFacts
from anneal_pipeline.training.runaway import WINDOW

GROWTH_STEPS, GROWTH_FACTOR, GROWTH_BYTES = 60, 1.3, 256 << 20
GROWTH_GOES_ON = 0.005
"""Rise from each window of the last steps to the next, as a share of what was held early."""
OVER_PLAN_FACTOR, OVER_PLAN_BYTES = 1.5, 1 << 30
"""A plan is right within 15 % (`memory.fit.MARGIN`); three times that, and more than libraries and
evaluations come to, is another thing than its error."""


@dataclass(kw_only=True)
class MemoryWatch:
    planned: Planned | None
    num_trainable: int
    num_parameters: int
    memory_in_use: Callable[[], int]
    """Bytes without what is free and only not given back; takes a moment, so asked seldom."""
    _steps: list[int] = field(default_factory=list)
    """Bytes at each of the last steps, the first ones kept."""
    _has_looked: bool = False
    """Whether what is held was compared with the plan by `memory_in_use`, which is done once."""

    def after_step(self, facts: StepFacts) -> Iterator[Diagnosis]:
        yield from self._of_plan(facts)
        yield from self._of_growth(facts)

    def _of_plan(self, facts: StepFacts) -> Iterator[Diagnosis]:
        planned = self.planned
        if planned is None or self._has_looked:
            return
        if not _is_over(facts.memory_bytes, planned=planned.num_bytes):
            return
        held, self._has_looked = self.memory_in_use(), True
        if _is_over(held, planned=planned.num_bytes):
            share = self.num_trainable / self.num_parameters
            yield Diagnosis(
                row="S8",
                symptom=f"The run holds {held / 1e9:.2f} GB at step {facts.step}, where "
                f"{planned.num_bytes / 1e9:.2f} GB were planned",
                cause=f"only {self.num_trainable:,} of {self.num_parameters:,} parameters "
                f"({share:.2%}) are trained and the base is frozen, so that something beside the "
                "model holds it",
                fix="lower training.microBatchSize or training.sequenceLength if it comes near "
                "the limit, and report it with the log",
            )

    def _of_growth(self, facts: StepFacts) -> Iterator[Diagnosis]:
        if len(self._steps) < GROWTH_STEPS:
            self._steps.append(facts.memory_bytes)
            return
        self._steps = [*self._steps[: 2 * WINDOW], *self._steps[2 * WINDOW + 1 :]]
        self._steps.append(facts.memory_bytes)
        early, late = max(self._steps[WINDOW : 2 * WINDOW]), min(self._steps[-WINDOW:])
        # A heap that grew with longer rows levels off; what keeps something goes on.
        recent = self._steps[2 * WINDOW :]
        lows = [min(recent[start : start + WINDOW]) for start in range(0, len(recent), WINDOW)]
        goes_on = all(low - before > GROWTH_GOES_ON * early for before, low in pairwise(lows))
        if not goes_on or not _has_grown(late, early=early):
            return
        held, self._steps = self.memory_in_use(), []
        if _has_grown(held, early=early):
            yield Diagnosis(
                row="S24",
                symptom=f"Memory grew from {early / 1e9:.2f} to {held / 1e9:.2f} GB by step "
                f"{facts.step}, with all that is free given back",
                cause="something keeps what steps leave behind",
                fix="report it with the log; until then a shorter training.sequenceLength and "
                "checkpoints keep the run going",
            )


def _is_over(held: int, *, planned: int) -> bool:
    return held > OVER_PLAN_FACTOR * planned and held - planned > OVER_PLAN_BYTES


def _has_grown(late: int, *, early: int) -> bool:
    return late > GROWTH_FACTOR * early and late - early > GROWTH_BYTES
