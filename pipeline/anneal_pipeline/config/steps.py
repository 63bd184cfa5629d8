"""How many steps a run has and when it evaluates and saves: the derived defaults, in one place."""

import math
from dataclasses import dataclass

from anneal_pipeline.config.checkpoint import DEFAULT_CHECKPOINT_SHARE
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.training import DEFAULT_NUM_EPOCHS, DEFAULT_WARMUP_RATIO

AUTO_MICRO_BATCH_MAX = 8
"""Largest micro-batch chosen without being asked for, where more would not be faster: on a CPU."""
AUTO_MICRO_BATCH_MAX_ON_GPU = 64
"""The same on a GPU, which is the faster the more it is given at once, as memory allows."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The step counts of one run; all in optimiser steps unless the name says otherwise."""

    total_steps: int
    steps_per_epoch: int
    warmup_steps: int
    evaluation_steps: int
    checkpoint_steps: int
    micro_batch_size: int
    """Sequences per forward pass of one rank."""
    batch_size: int
    """Sequences per optimiser step over all ranks."""

    def milestone_step(self, percent: int) -> int:
        """Return the step at which `percent` of all steps is reached, rounded up."""
        return math.ceil(self.total_steps * percent / 100)


def plan_steps(config: PipelineConfig, *, num_sequences: int, micro_batch_size: int) -> StepPlan:
    """Derive the step counts from the configuration and the number of training sequences.

    They do not depend on the micro-batch, which memory decides. The last batch of an epoch may be
    partial and is a step of its own.
    """
    training = config.training
    steps_per_epoch = max(1, math.ceil(num_sequences / training.batch_size))
    if training.max_steps is not None:
        total_steps = training.max_steps
    else:
        epochs = training.epochs if training.epochs is not None else DEFAULT_NUM_EPOCHS
        total_steps = max(1, math.ceil(steps_per_epoch * epochs))
    if training.warmup_steps is not None:
        warmup_steps = training.warmup_steps
    else:
        ratio = training.warmup_ratio
        ratio = DEFAULT_WARMUP_RATIO if ratio is None else ratio
        warmup_steps = math.ceil(total_steps * ratio)
    return StepPlan(
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=min(warmup_steps, total_steps),
        evaluation_steps=config.evaluation.every_steps or steps_per_epoch,
        checkpoint_steps=config.checkpoint.every_steps
        or max(1, round(total_steps * DEFAULT_CHECKPOINT_SHARE)),
        micro_batch_size=micro_batch_size,
        batch_size=training.batch_size,
    )


def auto_micro_batch_size(
    batch_size: int, *, world_size: int, at_most: int = AUTO_MICRO_BATCH_MAX
) -> int:
    """Return the largest divisor of one rank's share of the batch, up to `at_most`."""
    share = max(1, batch_size // world_size)
    sizes = range(min(share, at_most), 0, -1)
    return next(size for size in sizes if share % size == 0)


def resolved(config: PipelineConfig, plan: StepPlan) -> PipelineConfig:
    """Return the configuration with every derived default written out, as a reader wants it.

    Taken as a job's configuration, it means the same as the one it came from.
    """
    training, dataset = config.training, config.dataset
    explicit: dict[str, object] = {"micro_batch_size": plan.micro_batch_size}
    if training.max_steps is None and training.epochs is None:
        explicit["epochs"] = DEFAULT_NUM_EPOCHS
    if training.warmup_steps is None and training.warmup_ratio is None:
        explicit["warmup_ratio"] = DEFAULT_WARMUP_RATIO
    if dataset.files is None:
        dataset = dataset.model_copy(update={"split": dataset.effective_split})
    steps = {"every_steps": plan.evaluation_steps}, {"every_steps": plan.checkpoint_steps}
    return config.model_copy(
        update={
            "dataset": dataset,
            "training": training.model_copy(update=explicit),
            "evaluation": config.evaluation.model_copy(update=steps[0]),
            "checkpoint": config.checkpoint.model_copy(update=steps[1]),
        }
    )
