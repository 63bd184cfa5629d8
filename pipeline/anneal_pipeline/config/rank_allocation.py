"""How the rank of each adapter follows its importance, within a budget."""

import math
from typing import ClassVar, Self

from pydantic import Field, model_validator

from anneal_pipeline.config.schema import CelRule, Schema
from anneal_pipeline.config.values import NumSteps, Rank

INITIAL_RANK_FACTOR = 1.5
"""Of the paper's settings: it begins with half as much rank again as it ends with."""


class RankAllocationConfig(Schema):
    """Ranks that go where they matter (Zhang et al. 2023, AdaLoRA): every adapter begins with more
    than rank, and the directions that matter least are pruned until rank is the average."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.startShare < self.endShare",
            message="rankAllocation.startShare must be smaller than endShare; lower it",
        ),
    )

    initial_rank: Rank | None = None
    """Rank that every adapter begins with, greater than rank. Default: 1.5 times rank, rounded
    up."""
    start_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of all steps after which ranks begin to fall."""
    end_share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of all steps at which rank is the average; from there on ranks stay as they are."""
    every_steps: NumSteps = 1
    """Optimiser steps between two decisions while ranks fall."""
    orthogonality_weight: float = Field(default=0.5, ge=0.0, le=100.0)
    """Weight of the part of the loss that holds an adapter's directions apart."""

    @model_validator(mode="after")
    def _starts_before_it_ends(self) -> Self:
        if self.start_share >= self.end_share:
            raise ValueError(
                f"startShare ({self.start_share:g}) must be smaller than endShare "
                f"({self.end_share:g}); lower it"
            )
        return self

    def begins_at(self, rank: int) -> int:
        """The rank every adapter begins with, where `rank` is the average that is left."""
        return self.initial_rank or math.ceil(INITIAL_RANK_FACTOR * rank)
