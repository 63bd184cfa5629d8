"""Symptom, likely cause and fix of what looks odd, with the numbers of the run.

A diagnosis changes nothing; it is said once per run, at the step where it first applies. Each
carries the number of its row in the requirements (S2 ... S26, QP4), by which it can be looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, pstdev

import torch

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.training.runaway import FLAT_STEPS, WINDOW, is_flat

FIRST_LOSS_MAX = 10.0
"""Nats; a model with its own template and tokenizer begins far below."""
SPIKE_FACTOR, SPIKE_NATS = 2.0, 0.5
NORM_MAX = 10.0
NORM_FACTOR = 5.0
NORM_MIN = 1e-6
OVERFLOWS_MANY, OVERFLOW_STEPS = 5, 50
"""So many steps left out of the last so many: the first scale is seldom too large by so much."""
HALF_FIX = "set tuning.quantization.computeDtype to bfloat16, or float32 where the GPU lacks it"
OSCILLATION = 0.5
"""Standard deviation of the last losses over their mean."""
HELD_OUT_FACTOR = 1.5
RISE_FACTOR = 1.2
FLAT_RATE_SHARE = 0.3
"""Below this share of the peak rate a flat loss is the schedule's doing."""
SMALL_BATCH = 4
GROWTH_STEPS, GROWTH_FACTOR, GROWTH_BYTES = 60, 1.3, 256 << 20
GROWTH_GOES_ON = 0.005
"""Rise from each window of the last steps to the next, as a share of what was held early."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    row: str
    symptom: str
    cause: str
    fix: str

    def __str__(self) -> str:
        return f"{self.symptom}: {self.cause}; {self.fix}"


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """What a step looked like; `losses` end with its own, and so do `grad_norms` or `overflows`."""

    step: int
    losses: Sequence[float]
    grad_norms: Sequence[float]
    """Of steps that moved the adapters."""
    overflows: Sequence[int]
    """Steps that loss scaling left out."""
    rate: float
    peak_rate: float
    memory_bytes: int

    @property
    def has_overflowed(self) -> bool:
        return self.step in self.overflows


@dataclass(kw_only=True)
class Diagnostician:
    config: PipelineConfig
    compute: torch.dtype
    memory_in_use: Callable[[], int]
    """Bytes without what is free and only not given back; takes a moment, so asked seldom."""
    _memory: list[int] = field(default_factory=list)

    def at_start(self) -> Iterator[Diagnosis]:
        size = self.config.training.batch_size
        if size < SMALL_BATCH and not self.config.training.packing:
            yield Diagnosis(
                row="S21",
                symptom=f"Every step sees only {size} {'row' if size == 1 else 'rows'}",
                cause="gradients of so few rows are noisy and leave a processor idle",
                fix="set training.batchSize to 8 or more; training.microBatchSize bounds memory",
            )

    def after_step(self, facts: StepFacts) -> Iterator[Diagnosis]:
        yield from self._of_losses(facts)
        yield from self._of_overflows(facts) if facts.has_overflowed else self._of_gradients(facts)
        yield from self._of_memory(facts)

    def _of_losses(self, facts: StepFacts) -> Iterator[Diagnosis]:
        loss, before = facts.losses[-1], facts.losses[-WINDOW - 1 : -1]
        rate = f"training.learningRate from {self.config.training.learning_rate:g}"
        if facts.step == 1 and loss > FIRST_LOSS_MAX:
            yield Diagnosis(
                row="S2",
                symptom=f"The first training loss is {loss:.1f} nats per token",
                cause="the model has not seen text of this form: template or tokenizer is not its",
                fix="read data/report.md, and use the tokenizer and chat template of the model",
            )
        if len(before) == WINDOW and loss > max(
            SPIKE_FACTOR * fmean(before), fmean(before) + SPIKE_NATS
        ):
            is_half = self.compute == torch.float16
            yield Diagnosis(
                row="S15",
                symptom=f"The loss jumped to {loss:.2f} at step {facts.step}, from a mean of "
                f"{fmean(before):.2f} over {WINDOW} steps",
                cause="products in float16 overflow" if is_half else "a hard batch or a high rate",
                fix=HALF_FIX
                if is_half
                else f"if it comes again, lower {rate} or training.maxGradNorm",
            )
        last = facts.losses[-2 * WINDOW :]
        swings = len(last) == 2 * WINDOW and pstdev(last) > OSCILLATION * fmean(last)
        if swings and fmean(last[WINDOW:]) > fmean(last[:WINDOW]) and fmean(last) > SPIKE_NATS:
            yield Diagnosis(
                row="S19",
                symptom=f"The loss swings between {min(last):.2f} and {max(last):.2f} over the "
                f"{len(last)} steps to step {facts.step}",
                cause="the learning rate is too high for this data",
                fix=f"lower {rate} to {self.config.training.learning_rate / 3:.1g}, or warm up "
                "longer",
            )
        is_high = facts.rate > FLAT_RATE_SHARE * facts.peak_rate
        if is_high and is_flat(facts.losses) and fmean(last) > SPIKE_NATS:
            lora = self.config.tuning.lora
            yield Diagnosis(
                row="S7",
                symptom=f"The loss has not fallen in {FLAT_STEPS} steps: mean "
                f"{fmean(facts.losses[-WINDOW:]):.2f} at step {facts.step}",
                cause=f"rank {lora.rank} or the learning rate may be too low for this task",
                fix=f"raise tuning.lora.rank to {2 * lora.rank} and alpha to {2 * lora.alpha:g}, "
                f"or raise {rate}",
            )

    def _of_overflows(self, facts: StepFacts) -> Iterator[Diagnosis]:
        many = [step for step in facts.overflows if step > facts.step - OVERFLOW_STEPS]
        if len(many) >= OVERFLOWS_MANY:
            yield Diagnosis(
                row="QP4",
                symptom=f"{len(many)} of the {facts.step - many[0] + 1} steps to step {facts.step} "
                "moved nothing, because their gradients overflowed in float16",
                cause="the model's numbers reach beyond what float16 has (65,504)",
                fix=HALF_FIX,
            )

    def _of_gradients(self, facts: StepFacts) -> Iterator[Diagnosis]:
        norm, before = facts.grad_norms[-1], facts.grad_norms[-WINDOW - 1 : -1]
        lora = self.config.tuning.lora
        if norm < NORM_MIN:
            yield Diagnosis(
                row="S9",
                symptom=f"The gradient norm is {norm:.2g} at step {facts.step}",
                cause="hardly any gradient reaches the adapters",
                fix="use tuning.lora.targetModules all-linear, and look whether the rows have "
                "trained tokens",
            )
        if norm > NORM_MAX and (not before or norm > NORM_FACTOR * fmean(before)):
            mean = f", {fmean(before):.2g} on average before" if before else ""
            ratio = lora.alpha / lora.rank
            yield Diagnosis(
                row="S10",
                symptom=f"The gradient norm is {norm:.3g} at step {facts.step}{mean}; it is "
                f"clipped to {self.config.training.max_grad_norm:g}",
                cause=f"alpha is {ratio:g} times the rank" if ratio > 2 else "the step was large",
                fix=f"set tuning.lora.alpha to {2 * lora.rank}"
                if ratio > 2
                else "lower training.learningRate if the loss does not fall",
            )

    def _of_memory(self, facts: StepFacts) -> Iterator[Diagnosis]:
        if len(self._memory) < GROWTH_STEPS:
            self._memory.append(facts.memory_bytes)
            return
        self._memory = [*self._memory[: 2 * WINDOW], *self._memory[2 * WINDOW + 1 :]]
        self._memory.append(facts.memory_bytes)
        early, late = max(self._memory[WINDOW : 2 * WINDOW]), min(self._memory[-WINDOW:])
        # A heap that grew with longer rows levels off; what keeps something goes on.
        recent = self._memory[2 * WINDOW :]
        lows = [min(recent[start : start + WINDOW]) for start in range(0, len(recent), WINDOW)]
        goes_on = all(low - before > GROWTH_GOES_ON * early for before, low in pairwise(lows))
        if not goes_on or not _has_grown(late, early=early):
            return
        held, self._memory = self.memory_in_use(), []
        if _has_grown(held, early=early):
            yield Diagnosis(
                row="S24",
                symptom=f"Memory grew from {early / 1e9:.2f} to {held / 1e9:.2f} GB by step "
                f"{facts.step}, with all that is free given back",
                cause="something keeps what steps leave behind",
                fix="report it with the log; until then a shorter training.sequenceLength and "
                "checkpoints keep the run going",
            )

    def after_evaluation(
        self,
        metrics: Mapping[str, float],
        *,
        step: int,
        epochs: float,
        losses: Sequence[float],
        earlier: Sequence[float],
    ) -> Iterator[Diagnosis]:
        """`losses` of training up to now, `earlier` held-out losses."""
        loss = metrics["loss"]
        if not math.isfinite(loss):
            yield Diagnosis(
                row="S25",
                symptom=f"The held-out loss is {loss} at step {step}",
                cause="held-out rows make the model give no numbers",
                fix="look at data/validation/rows.jsonl for damaged rows",
            )
            return
        trained = fmean(losses[-WINDOW:]) if losses else math.nan
        is_first = not earlier and epochs <= 1
        if is_first and loss > HELD_OUT_FACTOR * trained and loss > trained + SPIKE_NATS:
            yield Diagnosis(
                row="S3",
                symptom=f"The held-out loss is {loss:.2f} at step {step}, the training loss "
                f"{trained:.2f}, within the first epoch",
                cause="held-out rows are of another kind than the training rows",
                fix="split with dataset.split.stratifyBy, or name fitting dataset.files",
            )
        if earlier and loss > RISE_FACTOR * min(earlier) and trained < loss:
            yield Diagnosis(
                row="S26",
                symptom=f"The held-out loss rose from {min(earlier):.2f} to {loss:.2f} at step "
                f"{step}, while the training loss is {trained:.2f}",
                cause="the model learns the training rows by heart",
                fix="set training.earlyStopping, train fewer epochs, or lower "
                "training.learningRate",
            )


def _has_grown(late: int, *, early: int) -> bool:
    return late > GROWTH_FACTOR * early and late - early > GROWTH_BYTES
