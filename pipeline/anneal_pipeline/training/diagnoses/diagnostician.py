"""All that is looked at while training, in one place.

What a diagnosis was made of lies beside it by the kind of thing looked at: batch and adapters
before the first step (`beginning`), losses, gradients, memory and speed of each step, held-out rows
at each evaluation and at the end. The rows that are read have theirs in `data.length_diagnoses` and
`training.diagnoses.vocabulary`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.diagnosis import Diagnosis
from anneal_pipeline.model.loading import TunedModel
from anneal_pipeline.training.batches import Batch
from anneal_pipeline.training.diagnoses.beginning import (
    losses_at_start,
    may_differ,
    of_batch,
    of_beginning,
)
from anneal_pipeline.training.diagnoses.facts import Planned, StepFacts
from anneal_pipeline.training.diagnoses.gradients import of_gradients
from anneal_pipeline.training.diagnoses.losses import of_losses
from anneal_pipeline.training.diagnoses.memory import MemoryWatch
from anneal_pipeline.training.diagnoses.speed import SpeedWatch, make_speed_watch
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.memory import memory_in_use
from anneal_pipeline.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Diagnostician:
    """Looks at the beginning and at every step."""

    config: PipelineConfig
    compute: torch.dtype
    planned: Planned | None
    ranks: Ranks
    memory: MemoryWatch
    speed: SpeedWatch

    def of_batch(self) -> Iterator[Diagnosis]:
        """Before any step, also of a run that goes on."""
        return of_batch(
            self.config,
            world_size=self.ranks.world_size,
            on_gpu=self.ranks.device.type == "cuda",
            planned=self.planned,
        )

    def of_beginning(
        self, model: PeftModel, path: LogitsPath, batches: Sequence[Batch]
    ) -> Iterator[Diagnosis]:
        """Before the first step, whose micro-batches are `batches`."""
        if not may_differ(self.config) or not batches:
            return
        losses = losses_at_start(model, path, batches[0].to(self.ranks.device))
        if losses is not None:
            yield from of_beginning(self.config, base=losses[0], adapted=losses[1])

    def after_step(self, facts: StepFacts) -> Iterator[Diagnosis]:
        yield from of_losses(facts, config=self.config, compute=self.compute)
        yield from of_gradients(facts, config=self.config)
        yield from self.memory.after_step(facts)
        yield from self.speed.after_step(facts)


def make_diagnostician(
    config: PipelineConfig, *, tuned: TunedModel, planned: Planned | None, ranks: Ranks
) -> Diagnostician:
    return Diagnostician(
        config=config,
        compute=tuned.compute,
        planned=planned,
        ranks=ranks,
        memory=MemoryWatch(
            planned=planned,
            num_trainable=tuned.num_trainable,
            num_parameters=tuned.num_parameters,
            memory_in_use=partial(memory_in_use, ranks.device),
        ),
        speed=make_speed_watch(
            config, device=ranks.device, compute=tuned.compute, method=tuned.method
        ),
    )
