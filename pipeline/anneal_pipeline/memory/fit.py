"""Which setting fits into the memory there is, nearest to the one asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from anneal_pipeline.memory.plan import MemoryPlan, size_text

MARGIN = 0.15
"""A plan is right within this share: what is chosen or suggested leaves it free."""
LENGTH_STEP = 64


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What of a job decides the memory of a step, beside its model."""

    rows: int
    """Sequences per forward pass."""
    length: int
    """Tokens of the longest sequence."""
    checkpointing: bool


PlanOf = Callable[[Setting], MemoryPlan]


@dataclass(frozen=True, kw_only=True)
class Nearest:
    setting: Setting
    plan: MemoryPlan

    def change_from(self, wanted: Setting) -> str:
        """What to set, as one instruction."""
        changes = []
        if self.setting.rows != wanted.rows:
            changes.append(f"training.microBatchSize to {self.setting.rows}")
        if self.setting.checkpointing and not wanted.checkpointing:
            changes.append("training.gradientCheckpointing to true")
        if self.setting.length != wanted.length:
            changes.append(f"training.sequenceLength to {self.setting.length}")
        *most, last = changes
        return "set " + (f"{', '.join(most)} and {last}" if most else last)


def divisors(share: int, *, at_most: int) -> Iterator[int]:
    """Sizes that cut `share` rows evenly, largest first."""
    yield from (size for size in range(min(share, at_most), 0, -1) if share % size == 0)


def largest_rows(wanted: Setting, *, share: int, room: int, plan_of: PlanOf) -> Setting | None:
    """The largest micro-batch up to the one wanted that leaves the margin, or None."""
    for rows in divisors(share, at_most=wanted.rows):
        setting = replace(wanted, rows=rows)
        if leaves_margin(plan_of(setting), room):
            return setting
    return None


def leaves_margin(plan: MemoryPlan, room: int) -> bool:
    return plan.peak * (1 + MARGIN) <= room


def find_nearest(wanted: Setting, *, share: int, room: int, plan_of: PlanOf) -> Nearest | None:
    """Smaller micro-batches, then checkpointing as well, then shorter sequences as well."""
    found = None
    if wanted.rows > 1:
        fewer = replace(wanted, rows=wanted.rows - 1)
        found = largest_rows(fewer, share=share, room=room, plan_of=plan_of)
    lighter = replace(wanted, checkpointing=True)
    if found is None and not wanted.checkpointing:
        found = largest_rows(lighter, share=share, room=room, plan_of=plan_of)
    if found is None:
        found = _longest(replace(lighter, rows=1), room=room, plan_of=plan_of)
    return None if found is None else Nearest(setting=found, plan=plan_of(found))


def _longest(wanted: Setting, *, room: int, plan_of: PlanOf) -> Setting | None:
    """The greatest length below the one wanted that leaves the margin, by halving the range."""
    low, high = 0, (wanted.length - 1) // LENGTH_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if leaves_margin(plan_of(replace(wanted, length=middle * LENGTH_STEP)), room):
            low = middle
        else:
            high = middle - 1
    return replace(wanted, length=low * LENGTH_STEP) if low else None


def refusal(
    wanted: Setting, plan: MemoryPlan, *, room: int, libraries: int, nearest: Nearest | None
) -> str:
    """One sentence: what is needed, what there is, and what would fit."""
    name, most = max(plan.parts().items(), key=lambda part: part[1])
    advice = (
        f"{nearest.change_from(wanted)}, which needs about "
        f"{size_text(nearest.plan.peak + libraries)}"
        if nearest
        else "take a smaller model or more memory"
    )
    rows = "1 row" if wanted.rows == 1 else f"{wanted.rows} rows"
    return (
        f"The run does not fit: it needs about {size_text(plan.peak + libraries)} with {rows} of "
        f"up to {wanted.length} tokens per forward pass, most of it for {name} "
        f"({size_text(most)}), and there are {size_text(room + libraries)}; {advice}"
    )
