"""A job's memory against what there is: the setting that a run takes, or why none fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import (
    AUTO_MICRO_BATCH_MAX,
    AUTO_MICRO_BATCH_MAX_ON_GPU,
    auto_micro_batch_size,
)
from anneal_pipeline.errors import UserError
from anneal_pipeline.memory.allocator import TIGHT_SHARE
from anneal_pipeline.memory.fit import (
    MARGIN,
    Choice,
    Nearest,
    PlanOf,
    Setting,
    Verdict,
    choose,
    find_nearest,
    largest_rows,
    refusal,
    verdict_of,
)
from anneal_pipeline.memory.plan import MemoryPlan
from anneal_pipeline.memory.room import Room
from anneal_pipeline.memory.trace import Place, Planner, PlanUnknownError, make_planner


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a job asks of the memory of one rank."""

    setting: Setting
    share: int
    """Sequences of one rank in an optimiser step."""
    may_lower: bool
    """Whether fewer rows per forward pass may be taken, for the same batch."""

    @classmethod
    def of(
        cls, config: PipelineConfig, *, length: int, world_size: int, fills_gpu: bool = False
    ) -> Wish:
        """The micro-batch of the job, which its recovery may lower too, or the usual one.

        `fills_gpu`: on a GPU whose free memory is known, so that as many as fit may be taken.
        """
        training = config.training
        usual = auto_micro_batch_size(
            training.batch_size,
            world_size=world_size,
            at_most=AUTO_MICRO_BATCH_MAX_ON_GPU if fills_gpu else AUTO_MICRO_BATCH_MAX,
        )
        return cls(
            setting=Setting(
                rows=training.micro_batch_size or usual,
                length=length,
                checkpointing=training.gradient_checkpointing,
            ),
            share=max(1, training.batch_size // world_size),
            may_lower=training.micro_batch_size is None or training.recovery.oom == "recover",
        )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    wanted: Setting
    choice: Choice
    """What a run takes."""
    room: Room
    nearest: Nearest | None
    """What would fit, where that does not."""

    @property
    def setting(self) -> Setting:
        return self.choice.setting

    @property
    def plan(self) -> MemoryPlan:
        return self.choice.plan

    @property
    def needed(self) -> int:
        """Bytes."""
        return self.plan.peak + self.room.taken

    @property
    def fits(self) -> bool:
        return self.choice.verdict is not Verdict.DOES_NOT_FIT

    @property
    def is_short(self) -> bool:
        """Whether it takes so much of the room that the plan should not be relied on alone."""
        free = self.room.free
        return free is not None and self.plan.peak > TIGHT_SHARE * free

    @property
    def is_step_short(self) -> bool:
        """The same of its step alone, which is left to come once the model is loaded."""
        free = self.room.free
        return free is not None and self.plan.step > TIGHT_SHARE * free

    @property
    def is_loading_tight(self) -> bool:
        """Whether loading may need more than there is, if the plan is as wrong as it may be."""
        free = self.room.free
        return free is not None and self.plan.loading * (1 + MARGIN) > free

    def rows_with_room(self, *, usual: int, share: int, plan_of: PlanOf) -> int:
        """How many of `usual` sequences there is room for at once.

        Asked only where a job wants one: what is left to us is as much anyway.
        """
        rows, room = self.setting.rows, self.room.free
        if self.wanted.rows > 1 or self.is_step_short or room is None:
            return rows
        most = replace(self.setting, rows=usual)
        try:
            larger = largest_rows(most, share=share, room=room, plan_of=plan_of)
        except PlanUnknownError:
            return rows
        return rows if larger is None else larger.rows

    def refusal(self) -> str:
        """Why it does not fit, in one sentence."""
        return refusal(
            self.setting,
            self.plan,
            room=self.room,
            nearest=self.nearest,
        )


@dataclass(frozen=True, kw_only=True)
class LighterBase:
    """The same job with its base held in less."""

    changes: Mapping[str, str]
    """Settings by their paths."""
    plan_of: PlanOf


def estimate(
    wish: Wish, *, room: Room, plan_of: PlanOf, lighter: Iterable[LighterBase]
) -> Estimate:
    """`lighter` is looked through only where no setting of the step helps."""
    choice = choose(
        wish.setting, share=wish.share, may_lower=wish.may_lower, room=room.free, plan_of=plan_of
    )
    nearest = None
    if room.free is not None and choice.verdict is Verdict.DOES_NOT_FIT:
        nearest = find_nearest(choice.setting, share=wish.share, room=room.free, plan_of=plan_of)
        nearest = nearest or _with_lighter_base(
            choice.setting, share=wish.share, room=room.free, lighter=lighter
        )
    return Estimate(wanted=wish.setting, choice=choice, room=room, nearest=nearest)


def _with_lighter_base(
    wanted: Setting, *, share: int, room: int, lighter: Iterable[LighterBase]
) -> Nearest | None:
    """The first of them with which a step fits, by other settings too if it must be."""
    for base in lighter:
        try:
            plan = base.plan_of(wanted)
            found = (
                Nearest(setting=wanted, plan=plan)
                if verdict_of(plan, room) is Verdict.FITS
                else find_nearest(wanted, share=share, room=room, plan_of=base.plan_of)
            )
        except (PlanUnknownError, UserError):  # what is no job like that helps nobody
            continue
        if found is not None:
            return replace(found, base=base.changes)
    return None


def planning(config: PipelineConfig, *, folder: Path, place: Place) -> PlanOf:
    """Plans by setting; each is made once. `folder` has the model's config.json."""
    planners: dict[bool, Planner] = {}
    plans: dict[Setting, MemoryPlan] = {}

    def plan_of(setting: Setting) -> MemoryPlan:
        if setting not in plans:
            on = setting.checkpointing
            if on not in planners:
                training = config.training.model_copy(update={"gradient_checkpointing": on})
                changed = config.model_copy(update={"training": training})
                planners[on] = make_planner(changed, folder=folder, place=place)
            plans[setting] = planners[on].plan(rows=setting.rows, length=setting.length)
        return plans[setting]

    return plan_of
