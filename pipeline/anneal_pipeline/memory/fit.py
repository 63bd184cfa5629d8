"""Which setting fits into the memory there is, nearest to the one asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from anneal_pipeline.memory.plan import MemoryPlan, size_text
from anneal_pipeline.memory.room import Room

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


class Verdict(Enum):
    FITS = "fits"
    """With the margin left free."""
    IS_TIGHT = "isTight"
    """The plan's own error decides."""
    DOES_NOT_FIT = "doesNotFit"
    """Not even if the plan is too high by all of its error."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a run takes of what it was asked for."""

    setting: Setting
    plan: MemoryPlan
    verdict: Verdict


def choose(
    wanted: Setting,
    *,
    share: int,
    may_lower: bool,
    room: int | None,
    plan_of: PlanOf,
    margin: float = MARGIN,
) -> Choice:
    """The setting wanted, or the largest smaller micro-batch that fits where it may be lowered.

    `share` are the sequences of one rank in an optimiser step, `room` bytes (None: not known), and
    `margin` the share by which a plan may be wrong.
    """
    setting, plan = wanted, plan_of(wanted)
    if room is None:
        return Choice(setting=setting, plan=plan, verdict=Verdict.FITS)
    if may_lower and not leaves_margin(plan, room, margin=margin):
        fewer = replace(wanted, rows=wanted.rows - 1)
        found = largest_rows(fewer, share=share, room=room, plan_of=plan_of, margin=margin)
        setting = found or replace(wanted, rows=1)
        plan = plan_of(setting)
    return Choice(setting=setting, plan=plan, verdict=verdict_of(plan, room, margin=margin))


def verdict_of(plan: MemoryPlan, room: int, *, margin: float = MARGIN) -> Verdict:
    if plan.peak * (1 + margin) <= room:
        return Verdict.FITS
    return Verdict.DOES_NOT_FIT if plan.peak > room * (1 + margin) else Verdict.IS_TIGHT


@dataclass(frozen=True, kw_only=True)
class Nearest:
    setting: Setting
    plan: MemoryPlan
    base: Mapping[str, str] = field(default_factory=dict)
    """Settings by their paths that hold the base in less, where no other setting helps."""

    def change_from(self, wanted: Setting) -> str:
        """What to set, as one instruction."""
        changes = [f"{path} to {value}" for path, value in self.base.items()]
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


def largest_rows(
    wanted: Setting, *, share: int, room: int, plan_of: PlanOf, margin: float = MARGIN
) -> Setting | None:
    """The largest micro-batch up to the one wanted that leaves the margin, or None."""
    for rows in divisors(share, at_most=wanted.rows):
        setting = replace(wanted, rows=rows)
        if leaves_margin(plan_of(setting), room, margin=margin):
            return setting
    return None


def leaves_margin(plan: MemoryPlan, room: int, *, margin: float = MARGIN) -> bool:
    """Of its step: what loading needs, no setting of a step changes."""
    return plan.step * (1 + margin) <= room


def find_nearest(wanted: Setting, *, share: int, room: int, plan_of: PlanOf) -> Nearest | None:
    """Smaller micro-batches, then checkpointing as well, then shorter sequences as well.

    None where none helps, as when the base cannot even be loaded.
    """
    if plan_of(wanted).loading > room * (1 + MARGIN):
        return None
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


def refusal(wanted: Setting, plan: MemoryPlan, *, room: Room, nearest: Nearest | None) -> str:
    """One sentence: what is needed, what there is, and what would fit."""
    is_for_loading = plan.loading > plan.step
    parts = plan.parts_of_loading() if is_for_loading else plan.parts()
    parts = {"the libraries": room.libraries, "Ray": room.others, **parts}
    name, most = max(parts.items(), key=lambda part: part[1])
    advice = (
        f"{nearest.change_from(wanted)}, which needs about "
        f"{size_text(nearest.plan.peak + room.taken)}"
        if nearest
        else "give it more memory"
        if room.taken >= (room.limit or 0)
        else "take a smaller model or more memory"
    )
    needed = size_text(plan.peak + room.taken)
    rows = "1 row" if wanted.rows == 1 else f"{wanted.rows} rows"
    what = (
        f"The model cannot be loaded: that needs about {needed}"
        if is_for_loading
        else f"The run does not fit: it needs about {needed} with {rows} of up to {wanted.length} "
        "tokens per forward pass"
    )
    return (
        f"{what}, most of it for {name} ({size_text(most)}), and there are "
        f"{size_text(room.limit or 0)}; {advice}"
    )
