"""Which micro-batch fits, and what would if none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import auto_micro_batch_size
from anneal_pipeline.errors import DOES_NOT_FIT, UserError
from anneal_pipeline.memory.plan import MemoryPlan, Setting, plan_memory
from anneal_pipeline.memory.shape import ModelShape

MARGIN = 0.15
"""The plan is right within this share: what is chosen leaves it free, what is refused misses by
more."""
LENGTH_STEP = 64
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The micro-batch of a run, and what it needs."""

    micro_batch_size: int
    plan: MemoryPlan
    room: int | None
    """Bytes; None where it is not known."""

    def summary(self) -> str:
        parts = ", ".join(f"{name} {_size(size)}" for name, size in self.plan.parts().items())
        room = "" if self.room is None else f" of {_size(self.room)} free"
        return (
            f"A training step needs about {_size(self.plan.total)}{room} with micro-batches of "
            f"{self.micro_batch_size}: {parts}"
        )


def setting_of(
    config: PipelineConfig, *, in_4_bit: bool, compute: str, on_gpu: bool, length: int
) -> Setting:
    """The job's own setting, for one row at a time."""
    return Setting(
        lora=config.tuning.lora,
        in_4_bit=in_4_bit,
        double_quant=config.tuning.quantization.double_quant,
        compute=compute,
        checkpointing=config.training.gradient_checkpointing,
        on_gpu=on_gpu,
        micro_batch_size=1,
        length=length,
    )


def choose_fit(
    shape: ModelShape,
    setting: Setting,
    config: PipelineConfig,
    *,
    room: int | None,
    world_size: int = 1,
) -> Fit:
    """Take the micro-batch of the job, or the largest that fits; refuse what cannot fit."""
    wanted = config.training.micro_batch_size
    sizes = [wanted] if wanted is not None else list(_sizes(config, world_size=world_size))
    for size in sizes:
        plan = plan_memory(shape, replace(setting, micro_batch_size=size))
        is_last = size == sizes[-1]
        # Only what surely does not fit is refused; what is chosen freely leaves the margin.
        factor = 1 - MARGIN if is_last else 1 + MARGIN
        if room is None or plan.total * factor <= room:
            return Fit(micro_batch_size=size, plan=plan, room=room)
    raise UserError(DOES_NOT_FIT, _refusal(shape, setting, room=room or 0, size=sizes[-1]))


def _sizes(config: PipelineConfig, *, world_size: int) -> Iterator[int]:
    """Divisors of a rank's share of the batch, from the largest that is chosen unasked."""
    share = max(1, config.training.batch_size // world_size)
    largest = auto_micro_batch_size(config.training.batch_size, world_size=world_size)
    yield from (size for size in range(largest, 0, -1) if share % size == 0)


def _refusal(shape: ModelShape, setting: Setting, *, room: int, size: int) -> str:
    plan = plan_memory(shape, replace(setting, micro_batch_size=size))
    nearest = next(_remedies(shape, setting, room=room, size=size), None)
    advice = (
        f"{nearest[0]}, which needs about {_size(nearest[1])}"
        if nearest
        else "take a smaller model or a machine with more memory"
    )
    largest = max(plan.parts().items(), key=lambda part: part[1])
    return (
        f"The run does not fit: a training step needs about {_size(plan.total)} with micro-batches "
        f"of {size} and rows of up to {setting.length} tokens, most of it for {largest[0]} "
        f"({_size(largest[1])}), and {_size(room)} are free; {advice}"
    )


def _remedies(
    shape: ModelShape, setting: Setting, *, room: int, size: int
) -> Iterator[tuple[str, int]]:
    """Settings that fit with the margin, nearest first, with what they need."""
    for text, changed in _changes(setting, size=size):
        total = plan_memory(shape, changed).total
        if total * (1 + MARGIN) <= room:
            yield text, total


def _changes(setting: Setting, *, size: int) -> Iterator[tuple[str, Setting]]:
    lighter = replace(setting, checkpointing=True)
    said = "" if setting.checkpointing else "training.gradientCheckpointing to true and "
    for rows in range(size - 1, 0, -1):
        text = f"set training.microBatchSize to {rows}"
        yield text, replace(setting, micro_batch_size=rows)
    if not setting.checkpointing:
        text = "set training.gradientCheckpointing to true"
        yield text, replace(lighter, micro_batch_size=size)
        yield f"{text} and training.microBatchSize to 1", replace(lighter, micro_batch_size=1)
    if not setting.in_4_bit:
        text = f"set {said}training.microBatchSize to 1 and tuning.method to qlora"
        yield text, replace(lighter, micro_batch_size=1, in_4_bit=True)
    top = (setting.length - 1) // LENGTH_STEP * LENGTH_STEP
    for length in range(top, 0, -LENGTH_STEP):
        text = f"set {said}training.microBatchSize to 1 and training.sequenceLength to {length}"
        yield text, replace(lighter, micro_batch_size=1, length=length)
    if not setting.in_4_bit:
        text = (
            f"set {said}training.microBatchSize to 1, tuning.method to qlora and "
            f"training.sequenceLength to {LENGTH_STEP}"
        )
        yield text, replace(lighter, micro_batch_size=1, in_4_bit=True, length=LENGTH_STEP)


def _size(num_bytes: int) -> str:
    if num_bytes < _GIB // 10:
        return f"{num_bytes / (1 << 20):.0f} MiB"
    return f"{num_bytes / _GIB:.2f} GiB"
