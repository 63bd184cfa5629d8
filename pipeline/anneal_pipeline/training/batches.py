"""Which rows make up which optimiser step: a pure function of lengths, seed and step.

Rows of about equal length go together, so that little is padded; the order of batches and the
company a row keeps still change from epoch to epoch. Nothing here has state: resuming is naming the
step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from anneal_pipeline.data.packing import longest_first
from anneal_pipeline.data.prepared import PreparedSplit

BATCHES_PER_GROUP = 32
"""Rows are shuffled, then sorted by length within groups of this many batches."""
IGNORED = -100
"""Label of a token that is not trained (PyTorch's ignore_index)."""

_Row = TypeVar("_Row")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch, padded on the right."""

    ids: torch.Tensor
    """(rows, length) token ids."""
    attention_mask: torch.Tensor
    labels: torch.Tensor
    """(rows, length): the id where the token is trained, IGNORED elsewhere; not shifted."""
    position_ids: torch.Tensor | None = None
    """(rows, length) in packed batches: 0 where a row begins, so that none sees another."""

    @property
    def num_tokens(self) -> int:
        return int(self.attention_mask.sum())

    @property
    def num_trained_tokens(self) -> int:
        return int((self.labels[:, 1:] != IGNORED).sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(
            ids=self.ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
            position_ids=None if self.position_ids is None else self.position_ids.to(device),
        )

    def inputs(self) -> dict[str, torch.Tensor | None]:
        """What the model takes: never a mask, which would cost it its fastest attention.

        Padding is on the right, where no token looks; packed rows are told apart by positions.
        """
        inputs: dict[str, torch.Tensor | None] = {"input_ids": self.ids, "attention_mask": None}
        if self.position_ids is not None:
            inputs["position_ids"] = self.position_ids
        return inputs


@dataclass(frozen=True, eq=False)  # compared by identity: a hash would read it all
class StepBatches:
    """The rows of each optimiser step of a run."""

    lengths: NDArray[np.uint32]
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def rows_of(self, step: int) -> tuple[int, ...]:
        """Row numbers of step `step` (from 0), longest first."""
        epoch, index = divmod(step, self.steps_per_epoch)
        first = index * self.batch_size
        rows: list[int] = _epoch_rows(self, epoch)[first : first + self.batch_size].tolist()
        return tuple(rows)


@lru_cache(maxsize=2)
def _epoch_rows(batches: StepBatches, epoch: int) -> NDArray[np.uint32]:
    """All rows in the order of an epoch; the last of its batches may be a partial one."""
    generator = torch.Generator().manual_seed(seed_of(batches.seed, "epoch", epoch))
    order = torch.randperm(len(batches.lengths), generator=generator).numpy().astype(np.uint32)
    size = batches.batch_size
    # The partial batch is cut off first, so that it is a random one and not the longest rows.
    full = len(order) // size * size
    bounds = (*range(0, full, size * BATCHES_PER_GROUP), full, len(order))
    for start, end in pairwise(bounds):
        group = order[start:end]
        order[start:end] = group[longest_first(batches.lengths[group])]
    mixed = torch.randperm(full // size, generator=generator).numpy()
    whole = order[:full].reshape(-1, size)[mixed]
    return np.concatenate([whole.ravel(), order[full:]])


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on all parts."""
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def micro_batches(rows: Sequence[_Row], size: int) -> list[tuple[_Row, ...]]:
    return [tuple(rows[i : i + size]) for i in range(0, len(rows), size)]


def collate(split: PreparedSplit, rows: Sequence[int], *, pad_id: int, train_all: bool) -> Batch:
    """Lay rows side by side; labels follow the response mask, or every real token."""
    parts = [split.row(row) for row in rows]
    length = max(len(ids) for ids, _ in parts)
    shape = (len(parts), length)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    attention = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for index, (row_ids, is_response) in enumerate(parts):
        size = len(row_ids)
        ids[index, :size] = row_ids
        attention[index, :size] = 1
        trained = torch.ones_like(is_response) if train_all else is_response
        labels[index, :size] = torch.where(trained.bool(), row_ids.long(), IGNORED)
    return Batch(ids=ids, attention_mask=attention, labels=labels)


def collate_packed(
    split: PreparedSplit, sequences: Sequence[Sequence[int]], *, pad_id: int, train_all: bool
) -> Batch:
    """Lay sequences of several rows each side by side.

    Positions begin anew with each row, and its first token, which nothing before it foretells, has
    no label. Each padding token has position 0 as well: a row of its own, which no other sees.
    """
    length = max(sum(len(split.row(row)[0]) for row in rows) for rows in sequences)
    shape = (len(sequences), length)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    attention = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    for index, rows in enumerate(sequences):
        start = 0
        for row in rows:
            alone = collate(split, [row], pad_id=pad_id, train_all=train_all)
            span = slice(start, start + alone.ids.shape[1])
            ids[index, span] = alone.ids[0]
            attention[index, span] = 1
            labels[index, span] = alone.labels[0]
            labels[index, start] = IGNORED
            positions[index, span] = torch.arange(alone.ids.shape[1])
            start = span.stop
    return Batch(ids=ids, attention_mask=attention, labels=labels, position_ids=positions)


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Makes the batches that a run trains on."""

    split: PreparedSplit
    pad_id: int
    train_all: bool
    """Every real token, not those of answers alone."""
    is_packed: bool

    def __call__(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Sequences side by side, as the rows they are made of: one each, unless packed."""
        if self.is_packed:
            return collate_packed(
                self.split, sequences, pad_id=self.pad_id, train_all=self.train_all
            )
        rows = list(chain.from_iterable(sequences))
        return collate(self.split, rows, pad_id=self.pad_id, train_all=self.train_all)
