"""The most that a pass may get: planned with tensors without numbers, measured with real ones."""

from __future__ import annotations

import torch

from anneal_pipeline.training.batches import Batch


class FullBatch(Batch):
    """A micro-batch in which every token is trained, which is known without looking at it."""

    @property
    def num_trained_tokens(self) -> int:
        rows, length = self.ids.shape
        return rows * (length - 1)


def full_batch(
    *, rows: int, length: int, num_ids: int, is_packed: bool, device: torch.device
) -> FullBatch:
    """Every row full of `num_ids` ids in turn, every token trained.

    A packed one holds two rows in each sequence, so that they have to be kept apart.
    """
    ids = torch.arange(rows * length, device=device).view(rows, length) % num_ids
    positions = torch.arange(length, device=device) % -(-length // 2)
    return FullBatch(
        ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=ids.clone(),
        position_ids=positions.expand(rows, length).contiguous() if is_packed else None,
    )
