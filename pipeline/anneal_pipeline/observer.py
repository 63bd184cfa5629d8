"""What a pipeline run tells the outside, and the one thing it asks: shall I stop?

`anneal_jobs` implements `Observer` with MLflow, progress, storage and signals; `NullObserver` is
the run that nobody watches. Every rank has an observer; reports are made on rank 0 only,
`should_stop` is asked on all ranks, at every optimiser step, and the ranks agree on the answer
among themselves. Calls come from the training thread: an observer that talks to a network must not
block in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

STAGE_DATA = "data"
STAGE_MODEL = "model"
STAGE_BASELINE = "baseline"
STAGE_TRAINING = "training"
STAGE_TRAINING_EVALUATION = "training-evaluation"
"""An evaluation between training steps; the training stage goes on after it."""
STAGE_EVALUATION = "evaluation"
STAGE_EXPORT = "export"

EVENT_WARNING = "warning"
EVENT_RESUMED = "resumed"
EVENT_CHECKPOINT_REJECTED = "checkpoint-rejected"
EVENT_STAGE_REUSED = "stage-reused"
EVENT_DATA_READY = "data-ready"
EVENT_MODEL_READY = "model-ready"
EVENT_MEMORY_PLANNED = "memory-planned"
"""What a step needs in memory, and how many sequences go through the model at once for that."""
EVENT_RECOVERED = "recovered"
"""The loop changed something to go on: memory, rows, rate, loss scale or a roll-back."""
EVENT_OVERFLOW = "overflow"
"""A step moved nothing, as loss scaling in float16 has it now and then."""
EVENT_EARLY_STOP = "early-stop"
EVENT_BEST_RESTORED = "best-restored"
EVENT_RANKS_SETTLED = "ranks-settled"
"""The ranks of the adapters have fallen to their budget, and stay."""
EVENT_ADAPTERS_MEASURED = "adapters-measured"
"""How well the adapters were used; its fields are `step` and `metrics`, one number each."""
EVENT_ROUNDING_MEASURED = "rounding-measured"
"""What the base lost in 4 bits; its fields are `step` and `metrics`, one number each."""
EVENT_DIAGNOSIS = "diagnosis"
"""Symptom, likely cause and fix of something odd, said once per run."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimiser step, after its update."""

    step: int
    total_steps: int
    epoch: float
    """Epochs done, with the fraction inside the current one."""
    loss: float
    """Nats per trained token over the whole accumulation window and all ranks."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    num_tokens: int
    """Tokens of this step over all ranks, padding left out."""
    num_trained_tokens: int
    step_seconds: float
    data_seconds: float
    """Of it, choosing rows and laying them out."""
    gradient_seconds: float
    """Of it, forward and backward passes with the ranks' sums, on the clock of the first rank."""
    update_seconds: float
    """Of it, moving the adapters; no device is waited for."""
    tokens_per_second: float
    eta_seconds: float
    """Of the training stage, from the mean step time of this attempt."""
    memory_bytes: int
    """Peak accelerator memory, or the resident set on CPU."""
    mean_rank: float | None = None
    """Average rank of the adapters after the step, where ranks are allocated."""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The metrics of one model over one split."""

    step: int
    subject: str
    """`base` or `tuned`."""
    split: str
    metrics: Mapping[str, float]
    """responsePerplexity, perplexity, tokenAccuracy, loss ..."""
    num_rows: int
    num_tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """A checkpoint that is complete in its store."""

    name: str
    step: int
    num_bytes: int
    seconds: float
    is_best: bool
    cause: str
    """`interval`, `best`, `stop` or `end`."""


class Observer(Protocol):
    def on_stage(self, stage: str, *, done: int, total: int, unit: str) -> None:
        """Work done in a stage (`rows`, `layers`, `steps`, `batches`); total 0 means unknown."""

    def on_step(self, report: StepReport) -> None: ...

    def on_evaluation(self, report: EvaluationReport) -> None: ...

    def on_checkpoint(self, report: CheckpointReport) -> None: ...

    def on_event(self, name: str, message: str, fields: Mapping[str, Any]) -> None:
        """Something a person should read: `message` is a sentence, `fields` its facts."""

    def on_output(self, path: Path) -> None:
        """A file or folder of the workspace is final and may be copied to the output folder."""

    def should_stop(self) -> bool:
        """True once this run has been asked to save a checkpoint and return."""

    def save_state(self) -> Mapping[str, Any]:
        """JSON to keep inside the next checkpoint (metric points not yet acknowledged)."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `save_state` gave, from the checkpoint a run resumes from."""


@dataclass
class NullObserver:
    """Keeps nothing, never stops; a base for observers that care about a few calls only."""

    state: Mapping[str, Any] = field(default_factory=dict)

    def on_stage(self, stage: str, *, done: int, total: int, unit: str) -> None:
        """Nobody listens."""

    def on_step(self, report: StepReport) -> None:
        """Nobody listens."""

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Nobody listens."""

    def on_checkpoint(self, report: CheckpointReport) -> None:
        """Nobody listens."""

    def on_event(self, name: str, message: str, fields: Mapping[str, Any]) -> None:
        """Nobody listens."""

    def on_output(self, path: Path) -> None:
        """Nobody listens."""

    def should_stop(self) -> bool:
        return False

    def save_state(self) -> Mapping[str, Any]:
        return self.state

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.state = state
