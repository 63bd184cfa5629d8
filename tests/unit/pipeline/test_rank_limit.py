"""The highest rank within 80 % of the memory, found by halving."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anneal_pipeline.errors import UserError
from anneal_pipeline.memory.fit import Setting
from anneal_pipeline.memory.plan import MemoryPlan
from anneal_pipeline.memory.rank_limit import MEMORY_SHARE, RANKS, RankLimit, find_rank_limit
from anneal_pipeline.memory.room import Room
from anneal_pipeline.model.task_ranks import TASK_RANKS, TaskRanks

MIB = 1 << 20
SETTING = Setting(rows=4, length=512, checkpointing=True)
NOTHING = MemoryPlan(
    weights=1000 * MIB,
    quantization_state=0,
    adapters=0,
    gradients=0,
    optimizer=0,
    batch=0,
    activations=0,
    logits=0,
    overhead=0,
    loading=1000 * MIB,
)


def plan_of(rank: int) -> MemoryPlan:
    """1,000 MiB and 8 for each rank."""
    return replace(
        NOTHING, adapters=2 * rank * MIB, gradients=2 * rank * MIB, optimizer=4 * rank * MIB
    )


def limit_of(limit: int, *, taken: int = 0, highest: int = 1024) -> RankLimit:
    asked: list[int] = []

    def plan(rank: int) -> MemoryPlan | None:
        asked.append(rank)
        return plan_of(rank) if rank <= highest else None

    found = find_rank_limit(
        setting=SETTING, room=Room(limit=limit * MIB, libraries=taken * MIB), plan_of=plan
    )
    assert len(asked) <= 3, "seven ranks are halved, not tried one by one"
    return found


@pytest.mark.parametrize("rank", RANKS)
def test_the_result_is_within_and_the_next_is_over(rank: int) -> None:
    exactly = int((1000 + 8 * rank) / MEMORY_SHARE) + 1
    found = limit_of(exactly)
    assert found.rank == rank
    assert found.needed <= MEMORY_SHARE * exactly * MIB
    if rank == RANKS[-1]:
        assert found.next_rank is None
    else:
        assert found.next_rank == 2 * rank
        assert found.next_plan is not None
        assert found.next_plan.peak > MEMORY_SHARE * exactly * MIB


def test_what_others_hold_is_no_room() -> None:
    assert limit_of(1600).rank == 32
    assert limit_of(1600, taken=100).rank == 16
    assert limit_of(1600, taken=100).needed == (1000 + 8 * 16 + 100) * MIB


def test_the_sentence_has_both_sides_of_the_border() -> None:
    assert limit_of(2000).sentence() == (
        "Rank 64 is the highest of 4, 8, 16, 32, 64, 128, 256 whose memory stays within 80% of "
        "1.95 GiB: it needs 1.48 GiB, and rank 128 needs 1.98 GiB"
    )
    assert limit_of(9000).sentence().endswith("80% of 8.79 GiB: it needs 2.98 GiB")


def test_weights_bound_the_rank_too() -> None:
    found = limit_of(9000, highest=64)
    assert (found.rank, found.next_plan) == (64, None)
    assert found.sentence().endswith("; rank 128 is more than a weight of the model has")


@pytest.mark.parametrize(
    ("room", "highest", "said"),
    [
        (Room(limit=1000 * MIB, libraries=0), 1024, "Not even rank 4 stays within 80% of 1000 MiB"),
        (Room(limit=9000 * MIB, libraries=0), 2, "has not even rank 4"),
    ],
)
def test_where_there_is_no_such_rank_it_is_said_why(room: Room, highest: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_rank_limit(
            setting=SETTING, room=room, plan_of=lambda r: plan_of(r) if r <= highest else None
        )


def test_bands_of_the_specification_by_task() -> None:
    bands = {task.task: (task.low, task.high) for task in TASK_RANKS}
    assert bands == {
        "style and tone": (4, 8),
        "following instructions": (16, 32),
        "creative writing": (16, 32),
        "knowledge of a domain": (32, 64),
        "code": (32, 64),
        "hard reasoning": (64, 128),
    }


def test_memory_cuts_the_band_of_a_task() -> None:
    code = TaskRanks(task="code", low=32, high=64)
    assert [code.below(limit) for limit in (128, 48, 32, 16)] == [
        (32, 64),
        (32, 48),
        (32, 32),
        None,
    ]
