"""The highest rank whose run stays well within memory, by halving the ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.errors import ADAPTER_IMPOSSIBLE, DOES_NOT_FIT, UserError
from anneal_pipeline.memory.estimate import planning
from anneal_pipeline.memory.fit import Setting
from anneal_pipeline.memory.plan import MemoryPlan, size_text
from anneal_pipeline.memory.room import Room
from anneal_pipeline.memory.trace import Place

RANKS = (4, 8, 16, 32, 64, 128, 256)
MEMORY_SHARE = 0.8
"""Of the limit: a run also evaluates and saves."""

PlanOfRank = Callable[[int], MemoryPlan | None]
"""None where a weight of the model has no such rank."""


@dataclass(frozen=True, kw_only=True)
class RankLimit:
    rank: int
    plan: MemoryPlan
    setting: Setting
    room: Room
    next_rank: int | None
    """The next one tried; None where the highest of all stays within."""
    next_plan: MemoryPlan | None
    """None where the next one is more than a weight has."""

    @property
    def needed(self) -> int:
        """Bytes."""
        return self.plan.peak + self.room.taken

    def sentence(self) -> str:
        within = (
            f"Rank {self.rank} is the highest of {', '.join(map(str, RANKS))} whose memory stays "
            f"within {MEMORY_SHARE:.0%} of {size_text(self.room.limit or 0)}: it needs "
            f"{size_text(self.needed)}"
        )
        if self.next_rank is None:
            return within
        if self.next_plan is None:
            return f"{within}; rank {self.next_rank} is more than a weight of the model has"
        beyond = size_text(self.next_plan.peak + self.room.taken)
        return f"{within}, and rank {self.next_rank} needs {beyond}"


def find_rank_limit(*, setting: Setting, room: Room, plan_of: PlanOfRank) -> RankLimit:
    """The highest of RANKS whose plan is within MEMORY_SHARE of the room.

    UserError where not even the lowest rank stays within, ValueError for a room without a limit.
    """
    if room.limit is None:
        raise ValueError("expected room whose limit is known")
    plans: dict[int, MemoryPlan | None] = {}
    best = None
    allowed = int(MEMORY_SHARE * room.limit) - room.taken
    low, high = 0, len(RANKS)
    while low < high:
        middle = (low + high) // 2
        plan = plans[RANKS[middle]] = plan_of(RANKS[middle])
        if plan is not None and plan.peak <= allowed:
            low, best = middle + 1, plan
        else:
            high = middle
    if best is None:
        raise UserError(DOES_NOT_FIT, _nothing_fits(RANKS[0], plans[RANKS[0]], room=room))
    following = RANKS[low] if low < len(RANKS) else None
    return RankLimit(
        rank=RANKS[low - 1],
        plan=best,
        setting=setting,
        room=room,
        next_rank=following,
        next_plan=plans[following] if following is not None else None,
    )


def _nothing_fits(rank: int, plan: MemoryPlan | None, *, room: Room) -> str:
    if plan is None:
        return f"--max-rank: a weight of the model has not even rank {rank}; name fewer targets"
    return (
        f"Not even rank {rank} stays within {MEMORY_SHARE:.0%} of {size_text(room.limit or 0)}: it "
        f"needs {size_text(plan.peak + room.taken)}, most of it not for adapters; see `anneal "
        "estimate` without --max-rank for a setting that fits"
    )


def plans_by_rank(
    config: PipelineConfig, *, setting: Setting, folder: Path, place: Place
) -> PlanOfRank:
    """Plans of the job with other ranks; ranks of its own in rankPattern stay.

    Ranks that fall to `rank` begin by their default above it, whatever the job says they begin at.
    """

    def plan_of(rank: int) -> MemoryPlan | None:
        lora = config.tuning.lora.model_copy(update={"rank": rank})
        if lora.rank_allocation is not None:
            allocation = lora.rank_allocation.model_copy(update={"initial_rank": None})
            lora = lora.model_copy(update={"rank_allocation": allocation})
        tuning = config.tuning.model_copy(update={"lora": lora})
        changed = config.model_copy(update={"tuning": tuning})
        try:
            return planning(changed, folder=folder, place=place)(setting)
        except UserError as error:
            if error.reason != ADAPTER_IMPOSSIBLE:
                raise
            return None

    return plan_of
