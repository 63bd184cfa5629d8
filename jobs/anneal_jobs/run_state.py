"""What is known of a run right now: the training thread writes, reporting threads read.

Events wait here for the next report. When more wait than one may carry, those that explain least
are left out first, and the report says how many; the attempt's events.jsonl has them all.
"""

from __future__ import annotations

import math
import threading

from anneal_operator.api.outcome import Outcome, OutcomeClass
from anneal_operator.api.progress import AnnealStatus, Metric, ProgressEvent, StageProgress
from anneal_pipeline.observer import (
    EVENT_BEST_RESTORED,
    EVENT_EARLY_STOP,
    EVENT_RECOVERED,
    CheckpointReport,
    EvaluationReport,
    StepReport,
)

EVENT_LEFT_OUT = "events-left-out"
_EVENTS_MAX = 15
"""One less than a report may carry: the last place is for what was left out."""
_MESSAGE_MAX = 1024
_ACTIONS = frozenset({EVENT_RECOVERED, EVENT_EARLY_STOP, EVENT_BEST_RESTORED})
"""What the run did to itself outlives what is only said of it."""


class RunState:
    """Thread-safe; `snapshot` carries a version that grows with every change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = 0
        self._stage: StageProgress | None = None
        self._step: StepReport | None = None
        self._checkpoint: CheckpointReport | None = None
        self._evaluations: dict[str, float] = {}
        self._events: list[ProgressEvent] = []
        self._num_left_out = self._num_left_out_told = 0
        self._outcome: Outcome | None = None

    def set_stage(self, name: str, *, done: int, total: int, unit: str) -> None:
        stage = StageProgress(name=name, done=done, total=total or None, unit=unit[:16])
        with self._lock:
            self._version += 1
            self._stage = stage

    def set_step(self, report: StepReport) -> None:
        with self._lock:
            self._version += 1
            self._step = report

    def set_checkpoint(self, report: CheckpointReport) -> None:
        with self._lock:
            self._version += 1
            self._checkpoint = report

    def add_evaluation(self, report: EvaluationReport) -> None:
        with self._lock:
            self._version += 1
            for name, value in report.metrics.items():
                self._evaluations[f"{report.subject}.{report.split}.{name}"] = value

    def add_event(self, name: str, message: str) -> None:
        with self._lock:
            self._version += 1
            self._events.append(ProgressEvent(name=name[:64], message=message[:_MESSAGE_MAX]))
            if len(self._events) > _EVENTS_MAX:
                lesser = (event for event in self._events if event.name not in _ACTIONS)
                self._events.remove(next(lesser, self._events[0]))
                self._num_left_out += 1

    def set_outcome(self, outcome: Outcome) -> None:
        with self._lock:
            self._version += 1
            self._outcome = outcome

    def forget_events(self, sent: tuple[ProgressEvent, ...]) -> None:
        """Take note that these have arrived, also those that made room for others meanwhile."""
        with self._lock:
            for event in sent:
                if event in self._events:
                    self._events.remove(event)
                elif event.name != EVENT_LEFT_OUT:
                    self._num_left_out -= 1
            if self._left_out() in sent:
                self._num_left_out_told = self._num_left_out

    def _left_out(self) -> ProgressEvent:
        return ProgressEvent(
            name=EVENT_LEFT_OUT,
            message=f"{self._num_left_out} events of this attempt came too fast to be reported "
            "here; events.jsonl in the attempt's logs has them",
        )

    def snapshot(self, *, attempt: int) -> tuple[int, AnnealStatus]:
        with self._lock:
            step, saved, outcome = self._step, self._checkpoint, self._outcome
            return self._version, AnnealStatus(
                attempt=attempt,
                stage=self._stage,
                step=step.step if step else outcome.step if outcome else None,
                total_steps=step.total_steps if step else None,
                loss=step.loss if step and math.isfinite(step.loss) else None,
                checkpoint=saved.name if saved else outcome.checkpoint if outcome else None,
                checkpoint_step=saved.step if saved else None,
                events=(*self._events, *self._untold()),
                outcome=outcome,
            )

    def _untold(self) -> tuple[ProgressEvent, ...]:
        return (self._left_out(),) if self._num_left_out > self._num_left_out_told else ()

    @property
    def step(self) -> int | None:
        return self._step.step if self._step else None

    @property
    def checkpoint(self) -> str | None:
        return self._checkpoint.name if self._checkpoint else None

    @property
    def percentage(self) -> int | None:
        """Of the training steps; 100 only for a run that is done."""
        if self._outcome is not None and self._outcome.outcome_class is OutcomeClass.DONE:
            return 100
        step = self._step
        return min(99, step.step * 100 // step.total_steps) if step and step.total_steps else None

    @property
    def eta_seconds(self) -> int | None:
        step = self._step
        return max(0, round(step.eta_seconds)) if step and math.isfinite(step.eta_seconds) else None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        step = self._step
        figures = dict(self._evaluations)
        if step is not None:
            figures |= {
                "loss": step.loss,
                "learningRate": step.learning_rate,
                "tokensPerSecond": step.tokens_per_second,
            }
        return tuple(
            Metric(name=name[:128], value=f"{value:.6g}") for name, value in figures.items()
        )[:64]
