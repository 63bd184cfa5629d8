"""Packing: every row once, nothing too long, well filled, and the same after every start."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from array import array
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.data.packing import describe_packing, pack
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.training.batches import IGNORED, collate, collate_packed
from anneal_pipeline.training.sequences import StepSequences

LIMIT = 64
LENGTHS = st.lists(st.integers(1, LIMIT), min_size=1, max_size=120)


@given(lengths=LENGTHS)
def test_every_row_is_in_one_sequence_and_none_is_too_long(lengths: list[int]) -> None:
    packed = pack(lengths, limit=LIMIT)
    assert sorted(row for rows in packed for row in rows) == list(range(len(lengths)))
    assert max(sum(lengths[row] for row in rows) for rows in packed) <= LIMIT
    assert list(packed) == list(pack(lengths, limit=LIMIT))


@given(lengths=LENGTHS)
def test_no_two_sequences_would_fit_into_one(lengths: list[int]) -> None:
    """The bound of first-fit: at most one sequence is half empty."""
    sizes = sorted(sum(lengths[row] for row in rows) for rows in pack(lengths, limit=LIMIT))
    assert len(sizes) == 1 or sizes[0] + sizes[1] > LIMIT


@given(lengths=st.lists(st.integers(LIMIT // 3 + 1, LIMIT), min_size=1, max_size=80))
def test_where_at_most_two_rows_fit_together_no_packing_is_better(lengths: list[int]) -> None:
    assert len(pack(lengths, limit=LIMIT)) == fewest_pairs(lengths)


def fewest_pairs(lengths: list[int]) -> int:
    """The least number of sequences where no three rows fit together."""
    left, count = sorted(lengths), 0
    while left:
        longest = left.pop()
        partner = max((length for length in left if length + longest <= LIMIT), default=None)
        if partner is not None:
            left.remove(partner)
        count += 1
    return count


def test_rows_of_a_chat_dataset_fill_nearly_everything() -> None:
    draw = random.Random(1)
    lengths = [min(2048, max(8, int(draw.lognormvariate(5.3, 0.8)))) for _ in range(4000)]
    report = describe_packing(lengths, limit=2048)
    assert report.fill_share > 0.99
    assert str(report) == (
        f"{report.num_sequences} sequences of up to 2048 tokens, {100 * report.fill_share:.1f} % "
        "filled"
    )


def sequences_of(
    lengths: Sequence[int], *, packing: bool = True, **training: object
) -> StepSequences:
    data = {"batchSize": 4, "sequenceLength": LIMIT, "packing": packing, **training}
    return StepSequences.of(TrainingConfig.parse(data), lengths)


@given(lengths=LENGTHS, epoch=st.integers(0, 3), packing=st.booleans())
def test_an_epoch_has_every_row_once_and_always_as_many_steps(
    lengths: list[int], epoch: int, packing: bool
) -> None:
    sequences = sequences_of(lengths, packing=packing)
    per_epoch = sequences.batches.steps_per_epoch
    steps = [sequences.of_step(epoch * per_epoch + step) for step in range(per_epoch)]
    assert sum(map(len, steps)) == len(sequences)
    flat = [rows for step in steps for rows in step]
    assert sorted(row for rows in flat for row in rows) == list(range(len(lengths)))
    assert max(sum(lengths[row] for row in rows) for rows in flat) <= LIMIT
    again = sequences_of(lengths, packing=packing)
    assert again.of_step(epoch * per_epoch) == steps[0], "a resumed run has the same"


def digest_of(plan: object) -> str:
    return hashlib.sha256(repr(plan).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("num_rows", "limit", "batch_size", "packing", "packed", "steps"),
    [
        (1, 64, 4, True, "78fce9491f4b0e3b", "94c8afd2eaa9c7ff"),
        (7, 64, 4, True, "4282489b74536625", "4395219608c58a4e"),
        (1000, 64, 4, True, "0a7536dbe8fd4a39", "a664d925b6ebb343"),
        (1000, 64, 7, False, "0a7536dbe8fd4a39", "0968dae4295257b1"),
        (5000, 2048, 16, True, "3b2474091f7e529f", "512ab1655179aa5e"),
        (5000, 2048, 16, False, "3b2474091f7e529f", "63f807ab22e7d329"),
    ],
)
def test_the_order_of_rows_is_that_of_every_earlier_version(
    num_rows: int, limit: int, batch_size: int, packing: bool, packed: str, steps: str
) -> None:
    """A run that an earlier version began goes on over the same rows."""
    draw = random.Random(num_rows)
    lengths = [draw.randint(1, limit + 2) for _ in range(num_rows)]
    assert digest_of(list(pack(lengths, limit=limit))) == packed
    sequences = sequences_of(
        lengths, packing=packing, batchSize=batch_size, sequenceLength=limit, seed=3
    )
    num_steps = 3 * sequences.batches.steps_per_epoch
    assert digest_of([sequences.of_step(step) for step in range(num_steps)]) == steps


def test_the_order_of_rows_written_out() -> None:
    lengths = [33, 46, 4, 60, 32, 7, 21, 15, 48, 61, 32, 49]
    assert list(pack(lengths, limit=LIMIT)) == [
        *((9,), (3, 2), (11, 7), (8,), (1,), (0, 6, 5), (4, 10)),
    ]
    sequences = sequences_of(lengths, batchSize=2)
    assert [sequences.of_step(step) for step in range(8)] == [
        *([(9,), (1,)], [(11, 7), (0, 6, 5)], [(4, 10), (3, 2)], [(8,)]),
        *([(8,), (1,)], [(0, 6, 5), (9,)], [(3, 2), (11, 7)], [(10, 4)]),
    ]


def test_a_hundred_thousand_rows_take_a_few_bytes_each() -> None:
    draw = random.Random(2)
    lengths = array("I", (draw.randint(8, 2048) for _ in range(100_000)))
    tracemalloc.start()
    try:
        sequences = sequences_of(lengths, sequenceLength=2048)
        sequences.of_step(0)
        sequences.of_step(sequences.batches.steps_per_epoch)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / len(lengths) < 40


def test_rows_change_company_from_epoch_to_epoch_and_with_the_seed() -> None:
    lengths = [8 + index % 5 for index in range(200)]
    one, other = sequences_of(lengths), sequences_of(lengths, seed=7)
    per_epoch = one.batches.steps_per_epoch

    def company(sequences: StepSequences, epoch: int) -> set[frozenset[int]]:
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        return {frozenset(rows) for step in steps for rows in sequences.of_step(step)}

    assert len(company(one, 0) & company(one, 1)) < 3
    assert len(company(one, 0) & company(other, 0)) < 3


def test_rows_left_out_leave_their_sequence_and_an_empty_one_goes() -> None:
    sequences = sequences_of([40, 30, 20, 60, 10], batchSize=8)
    [*whole] = sequences.of_step(0)
    assert sorted(map(sorted, whole)) == [[0, 2], [1, 4], [3]]
    kept = sequences.of_step(0, without=frozenset([3, 2]))
    assert sorted(map(sorted, kept)) == [[0], [1, 4]]


SPLIT = PreparedSplit(
    ids=torch.tensor([5, 6, 7, 3, 8, 3, 9, 9, 3], dtype=torch.int32),
    is_response=torch.tensor([0, 0, 1, 1, 1, 1, 0, 1, 1], dtype=torch.uint8),
    offsets=torch.tensor([0, 4, 6, 9]),
)


def test_positions_begin_anew_and_a_first_token_has_no_label() -> None:
    """Pitfall: packing leaks across documents."""
    batch = collate_packed(SPLIT, [(0, 1), (2,)], pad_id=3, train_all=True)
    none = IGNORED
    assert batch.ids.tolist() == [[5, 6, 7, 3, 8, 3], [9, 9, 3, 3, 3, 3]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    assert batch.labels.tolist() == [[none, 6, 7, 3, none, 3], [none, 9, 3, none, none, none]]
    assert batch.inputs()["attention_mask"] is None
    alone = collate(SPLIT, [0, 1, 2], pad_id=3, train_all=True)
    assert batch.num_tokens == alone.num_tokens == 9
    assert batch.num_trained_tokens == alone.num_trained_tokens == 6


def test_only_the_response_is_labelled_in_a_packed_batch_too() -> None:
    batch = collate_packed(SPLIT, [(2, 0)], pad_id=3, train_all=False)
    none = IGNORED
    assert batch.labels.tolist() == [[none, 9, 3, none, none, 7, 3]]
