"""Training losses that begin too high, jump, swing or do not fall (S2, S15, S19, S7)."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, pstdev

import torch

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.diagnosis import Diagnosis
from anneal_pipeline.training.diagnoses.facts import StepFacts
from anneal_pipeline.training.runaway import FLAT_STEPS, WINDOW, is_flat

FIRST_LOSS_MAX = 10.0
"""Nats; a model with its own template and tokenizer begins far below."""
SPIKE_FACTOR, SPIKE_NATS = 2.0, 0.5
OSCILLATION = 0.5
"""Standard deviation of the last losses over their mean."""
FLAT_RATE_SHARE = 0.3
"""Below this share of the peak rate a flat loss is the schedule's doing."""
HALF_FIX = "set tuning.quantization.computeDtype to bfloat16, or float32 where the GPU lacks it"


def of_losses(
    facts: StepFacts, *, config: PipelineConfig, compute: torch.dtype
) -> Iterator[Diagnosis]:
    if facts.step == 1:
        yield from _of_the_first(facts.losses[-1])
    yield from _of_a_jump(facts, config=config, is_half=compute == torch.float16)
    last = facts.losses[-2 * WINDOW :]
    rate = config.training.learning_rate
    swings = len(last) == 2 * WINDOW and pstdev(last) > OSCILLATION * fmean(last)
    if swings and fmean(last[WINDOW:]) > fmean(last[:WINDOW]) and fmean(last) > SPIKE_NATS:
        yield Diagnosis(
            row="S19",
            symptom=f"The loss swings between {min(last):.2f} and {max(last):.2f} over the "
            f"{len(last)} steps to step {facts.step}",
            cause="the learning rate is too high for this data",
            fix=f"lower training.learningRate from {rate:g} to {rate / 3:.1g}, or warm up longer",
        )
    is_high = facts.rate > FLAT_RATE_SHARE * facts.peak_rate
    if is_high and is_flat(facts.losses) and fmean(last) > SPIKE_NATS:
        lora = config.tuning.lora
        yield Diagnosis(
            row="S7",
            symptom=f"The loss has not fallen in {FLAT_STEPS} steps: mean "
            f"{fmean(facts.losses[-WINDOW:]):.2f} at step {facts.step}",
            cause=f"rank {lora.rank} or the learning rate may be too low for this task",
            fix=f"raise tuning.lora.rank to {2 * lora.rank} and alpha to {2 * lora.alpha:g}, "
            f"or raise training.learningRate from {rate:g}",
        )


def _of_the_first(loss: float) -> Iterator[Diagnosis]:
    if loss > FIRST_LOSS_MAX:
        yield Diagnosis(
            row="S2",
            symptom=f"The first training loss is {loss:.1f} nats per token",
            cause="the model has not seen text of this form: template or tokenizer is not its",
            fix="read data/report.md, and use the tokenizer and chat template of the model",
        )


def _of_a_jump(facts: StepFacts, *, config: PipelineConfig, is_half: bool) -> Iterator[Diagnosis]:
    loss, before = facts.losses[-1], facts.losses[-WINDOW - 1 : -1]
    if len(before) < WINDOW:
        return
    if loss > max(SPIKE_FACTOR * fmean(before), fmean(before) + SPIKE_NATS):
        yield Diagnosis(
            row="S15",
            symptom=f"The loss jumped to {loss:.2f} at step {facts.step}, from a mean of "
            f"{fmean(before):.2f} over {WINDOW} steps",
            cause="products in float16 overflow" if is_half else "a hard batch or a high rate",
            fix=HALF_FIX
            if is_half
            else "if it comes again, lower training.learningRate from "
            f"{config.training.learning_rate:g} or training.maxGradNorm",
        )
