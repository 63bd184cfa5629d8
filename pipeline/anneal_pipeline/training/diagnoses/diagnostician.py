"""All that is looked at while training, in one place.

What a diagnosis was made of lies beside it by the kind of thing looked at: batch and adapters
before the first step (`beginning`), losses, gradients, memory and speed of each step, held-out rows
at each evaluation and at the end. The rows that are read have theirs in `data.length_diagnoses` and
`training.vocabulary`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.diagnosis import Diagnosis
from anneal_pipeline.training.diagnoses.facts import StepFacts
from anneal_pipeline.training.diagnoses.gradients import of_gradients
from anneal_pipeline.training.diagnoses.losses import of_losses
from anneal_pipeline.training.diagnoses.memory import MemoryWatch
from anneal_pipeline.training.diagnoses.speed import SpeedWatch


@dataclass(frozen=True, kw_only=True)
class Diagnostician:
    """Looks at every step."""

    config: PipelineConfig
    compute: torch.dtype
    memory: MemoryWatch
    speed: SpeedWatch

    def after_step(self, facts: StepFacts) -> Iterator[Diagnosis]:
        yield from of_losses(facts, config=self.config, compute=self.compute)
        yield from of_gradients(facts, config=self.config)
        yield from self.memory.after_step(facts)
        yield from self.speed.after_step(facts)
