"""Gradients that vanish, explode or overflow (S9, S10, QP4)."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.diagnosis import Diagnosis
from anneal_pipeline.training.diagnoses.facts import StepFacts
from anneal_pipeline.training.diagnoses.losses import HALF_FIX
from anneal_pipeline.training.runaway import WINDOW

NORM_MAX = 10.0
NORM_FACTOR = 5.0
NORM_MIN = 1e-6
OVERFLOWS_MANY, OVERFLOW_STEPS = 5, 50
"""So many steps left out of the last so many: the first scale is seldom too large by so much."""


def of_gradients(facts: StepFacts, *, config: PipelineConfig) -> Iterator[Diagnosis]:
    """Of a step that moved the adapters, or of one that loss scaling left out."""
    if facts.has_overflowed:
        yield from _of_overflows(facts)
    else:
        yield from _of_norms(facts, config=config)


def _of_overflows(facts: StepFacts) -> Iterator[Diagnosis]:
    many = [step for step in facts.overflows if step > facts.step - OVERFLOW_STEPS]
    if len(many) >= OVERFLOWS_MANY:
        yield Diagnosis(
            row="QP4",
            symptom=f"{len(many)} of the {facts.step - many[0] + 1} steps to step {facts.step} "
            "moved nothing, because their gradients overflowed in float16",
            cause="the model's numbers reach beyond what float16 has (65,504)",
            fix=HALF_FIX,
        )


def _of_norms(facts: StepFacts, *, config: PipelineConfig) -> Iterator[Diagnosis]:
    norm, before = facts.grad_norms[-1], facts.grad_norms[-WINDOW - 1 : -1]
    lora = config.tuning.lora
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
            f"clipped to {config.training.max_grad_norm:g}",
            cause=f"alpha is {ratio:g} times the rank" if ratio > 2 else "the step was large",
            fix=f"set tuning.lora.alpha to {2 * lora.rank}"
            if ratio > 2
            else "lower training.learningRate if the loss does not fall",
        )
