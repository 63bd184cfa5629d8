"""Steps that wait for their rows, and products that the hardware is slow at (S22, S14)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean, median

import torch

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.device import has_bfloat16
from anneal_pipeline.diagnosis import Diagnosis
from anneal_pipeline.training.diagnoses.facts import StepFacts, StepSeconds
from anneal_pipeline.training.runaway import WINDOW

DATA_SHARE = 0.2
"""Of a step; a loader that cost nothing would make training a quarter faster, less is no matter."""
DATA_SECONDS = 0.02
"""Of a step; below it the steps of a small model are short rather than their rows slow."""


@dataclass(frozen=True, kw_only=True)
class SlowProducts:
    """Why products are slower than the hardware could make them, and what to do."""

    cause: str
    fix: str


def slow_products(
    config: PipelineConfig, *, device: str, compute: torch.dtype, has_bfloat16: bool | None
) -> SlowProducts | None:
    """`device` is its type; `has_bfloat16` in hardware, None where that is not known."""
    asked = config.tuning.quantization.compute_dtype
    if device == "cuda" and compute == torch.float32:
        if asked == "float32" and has_bfloat16 is False:
            return None  # which is what to ask for where float16 overflows
        if asked == "float32":
            return SlowProducts(
                cause="tuning.quantization.computeDtype float32 leaves the units for 16-bit "
                "products idle",
                fix="set it to auto",
            )
        return SlowProducts(
            cause="this GPU has no bfloat16, and float16 does not do for this base or job",
            fix="take a GPU with bfloat16 (Ampere or newer), or a base that was published in "
            "float16",
        )
    if device == "cpu" and compute == torch.bfloat16 and has_bfloat16 is False:
        return SlowProducts(
            cause="this CPU has no instructions for bfloat16, which it has to imitate",
            fix="set tuning.quantization.computeDtype to auto, which is float32 on a "
            "CPU, if memory holds the base in 32 bits",
        )
    return None


@dataclass(kw_only=True)
class SpeedWatch:
    """Over the last steps of this attempt: a mean of a few, so that one pause is no alarm."""

    slow: SlowProducts | None
    where: str
    """Type, device and form of the base, for the eyes."""
    _seconds: deque[StepSeconds] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _tokens: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def after_step(self, facts: StepFacts) -> Iterator[Diagnosis]:
        self._seconds.append(facts.seconds)
        self._tokens.append(facts.num_tokens)
        if len(self._seconds) == WINDOW:
            yield from self._of_products(facts)
            yield from self._of_data(facts)

    def _of_products(self, facts: StepFacts) -> Iterator[Diagnosis]:
        if self.slow is None:
            return
        seconds = sum(step.total for step in self._seconds)
        yield Diagnosis(
            row="S14",
            symptom=f"Training does {sum(self._tokens) / max(seconds, 1e-9):,.0f} tokens/s over "
            f"the {WINDOW} steps to step {facts.step}, computing {self.where}",
            cause=self.slow.cause,
            fix=self.slow.fix,
        )

    def _of_data(self, facts: StepFacts) -> Iterator[Diagnosis]:
        # Medians, because a machine that stood still for a moment did so in some one part.
        data = median(step.data for step in self._seconds)
        share = median(step.data / max(step.total, 1e-9) for step in self._seconds)
        if share > DATA_SHARE and data > DATA_SECONDS:
            rest = fmean(step.gradients + step.update for step in self._seconds)
            yield Diagnosis(
                row="S22",
                symptom=f"{share:.0%} of a step is spent on laying out its rows ({data:.3g} s, "
                f"beside {rest:.3g} s of computing, over the {WINDOW} steps to step {facts.step})",
                cause="the thread that trains gets too little of a CPU for it, or rows are many "
                "and short",
                fix="raise compute.cpus; with training.packing on, a smaller training.batchSize "
                "has fewer rows a step",
            )


def make_speed_watch(
    config: PipelineConfig, *, device: torch.device, compute: torch.dtype, method: str
) -> SpeedWatch:
    """`method` is qlora or lora, as it came to be."""
    slow = slow_products(
        config, device=device.type, compute=compute, has_bfloat16=has_bfloat16(device)
    )
    base = "4 bits" if method == "qlora" else "full"
    kind = str(compute).removeprefix("torch.")
    return SpeedWatch(slow=slow, where=f"in {kind} on {device} with the base in {base}")
