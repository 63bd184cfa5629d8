"""Rows of a step: every row once per epoch, the same after every start, little padding."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.training.batches import IGNORED, StepBatches, collate, micro_batches

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=80)


def lengths_of(lengths: Iterable[int]) -> NDArray[np.uint32]:
    return np.array([*lengths], dtype=np.uint32)


@given(lengths=LENGTHS, batch_size=st.integers(1, 16), epoch=st.integers(0, 3))
def test_every_row_comes_once_per_epoch(lengths: list[int], batch_size: int, epoch: int) -> None:
    batches = StepBatches(lengths_of(lengths), batch_size, seed=1)
    first = epoch * batches.steps_per_epoch
    steps = [batches.rows_of(first + i) for i in range(batches.steps_per_epoch)]
    assert sorted(row for rows in steps for row in rows) == list(range(len(lengths)))
    assert [len(rows) for rows in steps[:-1]] == [batch_size] * (len(steps) - 1)


def test_the_same_step_has_the_same_rows_and_another_epoch_others() -> None:
    one = StepBatches(lengths_of(range(1, 65)), 4, seed=1)
    two = StepBatches(lengths_of(range(1, 65)), 4, seed=1)
    assert [one.rows_of(step) for step in range(40)] == [two.rows_of(step) for step in range(40)]
    assert [one.rows_of(s) for s in range(16)] != [one.rows_of(s + 16) for s in range(16)]
    assert one.rows_of(0) != StepBatches(lengths_of(range(1, 65)), 4, seed=2).rows_of(0)


def test_rows_of_like_length_go_together() -> None:
    lengths = tuple((index * 7919) % 200 + 1 for index in range(512))
    batches = StepBatches(lengths_of(lengths), 8, seed=1)
    padded = sum(8 * max(lengths[row] for row in batches.rows_of(step)) for step in range(64))
    assert padded < 1.15 * sum(lengths)


def split_of(rows: list[tuple[list[int], list[int]]]) -> PreparedSplit:
    offsets = [0]
    for ids, _ in rows:
        offsets.append(offsets[-1] + len(ids))
    return PreparedSplit(
        ids=torch.tensor([i for ids, _ in rows for i in ids], dtype=torch.int32),
        is_response=torch.tensor([m for _, mask in rows for m in mask], dtype=torch.uint8),
        offsets=torch.tensor(offsets),
    )


EOS = 3
SPLIT = split_of([([5, 6, 7, EOS], [0, 0, 1, 1]), ([5, EOS], [0, 1])])


def test_padding_is_masked_by_length_and_keeps_the_eos_label() -> None:
    """Pitfall: pad = eos and masking by id removes the real EOS."""
    batch = collate(SPLIT, [0, 1], pad_id=EOS, train_all=False)
    assert batch.labels.tolist() == [
        [IGNORED, IGNORED, 7, EOS],
        [IGNORED, EOS, IGNORED, IGNORED],
    ]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert (batch.num_tokens, batch.num_trained_tokens) == (6, 3)


def test_loss_on_all_trains_every_real_token() -> None:
    batch = collate(SPLIT, [1, 0], pad_id=EOS, train_all=True)
    assert batch.labels.tolist() == [[5, EOS, IGNORED, IGNORED], [5, 6, 7, EOS]]


def test_micro_batches_cut_without_loss() -> None:
    assert micro_batches([1, 2, 3, 4, 5], 2) == [(1, 2), (3, 4), (5,)]
