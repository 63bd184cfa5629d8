"""Which sequences make up each optimiser step: one row each, or several packed into one.

A sequence is what a batch counts and what goes through the model as one. Packing is settled once,
over the lengths, so that every epoch has the same number of sequences; rows of equal length change
places from epoch to epoch, so that a row does not always keep the same company.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.data.packing import Packed, pack
from anneal_pipeline.training.batches import StepBatches, seed_of


@dataclass(frozen=True, kw_only=True, eq=False)  # compared by identity: a hash would read it all
class Packing:
    row_lengths: NDArray[np.uint32]
    sequences: Packed
    """Rows of each sequence before they change places."""
    seed: int

    def rows_of(self, sequence: int, *, epoch: int) -> tuple[int, ...]:
        places = _places(self, epoch)
        return tuple(int(places[row]) for row in self.sequences[sequence])


@lru_cache(maxsize=2)
def _places(packing: Packing, epoch: int) -> NDArray[np.uint32]:
    """The row that stands in for each row in this epoch; it has the same length."""
    lengths = packing.row_lengths
    generator = torch.Generator().manual_seed(seed_of(packing.seed, "packing", epoch))
    shuffled = torch.randperm(len(lengths), generator=generator).numpy()
    places = np.empty(len(lengths), dtype=np.uint32)
    places[np.argsort(lengths, kind="stable")] = shuffled[
        np.argsort(lengths[shuffled], kind="stable")
    ]
    return places


@dataclass(frozen=True, kw_only=True)
class StepSequences:
    """The sequences of each step of a run, as the rows they are made of."""

    batches: StepBatches
    packing: Packing | None

    @classmethod
    def of(cls, config: TrainingConfig, row_lengths: Sequence[int]) -> Self:
        packing, lengths = None, np.asarray(row_lengths, dtype=np.uint32)
        if config.packing:
            sequences = pack(row_lengths, limit=config.sequence_length)
            packing = Packing(row_lengths=lengths, sequences=sequences, seed=config.seed)
            lengths = sequences.lengths(lengths)
        batches = StepBatches(lengths=lengths, batch_size=config.batch_size, seed=config.seed)
        return cls(batches=batches, packing=packing)

    def __len__(self) -> int:
        """Sequences of an epoch."""
        return len(self.batches.lengths)

    def of_step(self, step: int, *, without: Collection[int] = ()) -> list[tuple[int, ...]]:
        """The rows of each sequence of step `step` (from 0), but those left out."""
        numbers, packing = self.batches.rows_of(step), self.packing
        if packing is None:
            return [(row,) for row in numbers if row not in without]
        epoch = step // self.batches.steps_per_epoch
        packed = (packing.rows_of(number, epoch=epoch) for number in numbers)
        kept = (tuple(row for row in rows if row not in without) for rows in packed)
        return [rows for rows in kept if rows]
