"""A job's memory against what there is: the setting that fits, or why none does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import auto_micro_batch_size
from anneal_pipeline.memory.fit import (
    Nearest,
    PlanOf,
    Setting,
    find_nearest,
    refusal,
)
from anneal_pipeline.memory.plan import MemoryPlan
from anneal_pipeline.memory.trace import Place, Planner, make_planner


@dataclass(frozen=True, kw_only=True)
class Room:
    """What one rank may take."""

    limit: int | None
    """Bytes; None where it is not known."""
    libraries: int
    """Bytes of it that the interpreter and the libraries hold before a model is loaded."""

    @property
    def free(self) -> int | None:
        return None if self.limit is None else self.limit - self.libraries


@dataclass(frozen=True, kw_only=True)
class Estimate:
    setting: Setting
    plan: MemoryPlan
    room: Room
    nearest: Nearest | None
    """What would fit, where `setting` does not."""

    @property
    def needed(self) -> int:
        """Bytes."""
        return self.plan.peak + self.room.libraries

    @property
    def fits(self) -> bool:
        return self.room.free is None or self.plan.peak <= self.room.free

    def refusal(self) -> str:
        """Why it does not fit, in one sentence."""
        return refusal(
            self.setting,
            self.plan,
            room=self.room.free or 0,
            libraries=self.room.libraries,
            nearest=self.nearest,
        )


def estimate(
    config: PipelineConfig,
    *,
    folder: Path,
    place: Place,
    room: Room,
    length: int,
    world_size: int,
) -> Estimate:
    """Plan the micro-batch that a run takes: the job's own, or the usual one."""
    training = config.training
    plan_of = _planning(config, folder=folder, place=place)
    usual = auto_micro_batch_size(training.batch_size, world_size=world_size)
    share = max(1, training.batch_size // world_size)
    setting = Setting(
        rows=training.micro_batch_size or usual,
        length=length,
        checkpointing=training.gradient_checkpointing,
    )
    plan = plan_of(setting)
    nearest = None
    if room.free is not None and plan.peak > room.free:
        nearest = find_nearest(setting, share=share, room=room.free, plan_of=plan_of)
    return Estimate(setting=setting, plan=plan, room=room, nearest=nearest)


def _planning(config: PipelineConfig, *, folder: Path, place: Place) -> PlanOf:
    """Plans by setting; each is made once."""
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
