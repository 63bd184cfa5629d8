"""How the adapters are trained."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from anneal_pipeline.config.schema import CelRule, Schema
from anneal_pipeline.config.values import NUM_STEPS_MAX, NumSteps, Seed

DEFAULT_NUM_EPOCHS = 3.0
DEFAULT_WARMUP_RATIO = 0.03
SCHEDULES_THAT_STAY = ("constant", "constantWithWarmup")
"""Those that have no fall behind the warm-up."""


class EarlyStoppingConfig(Schema):
    """Stop when the held-out metric no longer improves."""

    metric: Literal["responsePerplexity", "perplexity", "tokenAccuracy"] = "responsePerplexity"
    """The metric watched."""
    patience: int = Field(default=3, ge=1, le=1000)
    """Evaluations without improvement before training stops."""
    min_delta: float = Field(default=0.0, ge=0.0)
    """Least change that counts as improvement, in the metric's own unit."""
    restore_best: bool = True
    """Whether the best checkpoint becomes the result."""


class RecoveryConfig(Schema):
    """What the training loop does when a step goes wrong."""

    oom: Literal["fail", "recover"] = "recover"
    """Out of memory, or a micro-batch that does not fit by the plan: recover takes fewer rows per
    forward pass and keeps the batch."""
    nan: Literal["fail", "recover"] = "recover"
    """A loss that is not finite: recover skips and names the rows that cause it; where none does,
    it skips the step, halves the learning rate and, with damaged weights, rolls back."""
    divergence: Literal["fail", "recover"] = "recover"
    """A loss that runs away: recover rolls back and halves the learning rate."""


class TrainingConfig(Schema):
    """The training loop."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!(has(self.epochs) && has(self.maxSteps))",
            message="epochs and maxSteps exclude each other; remove one of them",
        ),
        CelRule(
            rule="!(has(self.warmupSteps) && has(self.warmupRatio))",
            message="warmupSteps and warmupRatio exclude each other; remove one of them",
        ),
        CelRule(
            rule="!has(self.microBatchSize) || self.microBatchSize <= self.batchSize",
            message="microBatchSize must not be greater than batchSize; lower it or raise "
            "batchSize",
        ),
        CelRule(
            rule="!has(self.minLearningRate) || self.minLearningRate <= self.learningRate",
            message="minLearningRate must not be greater than learningRate; lower it",
        ),
        CelRule(
            rule="!has(self.minLearningRate) || "
            "!(self.schedule in ['constant', 'constantWithWarmup'])",
            message="minLearningRate has no effect for a schedule that does not fall; remove it, "
            "or take another schedule",
        ),
    )

    epochs: float | None = Field(default=None, gt=0.0, le=1000.0)
    """Passes over the training rows. Default: 3, unless maxSteps is set."""
    max_steps: NumSteps | None = None
    """Optimiser steps. Excludes epochs."""
    learning_rate: float = Field(default=2e-4, gt=0.0, le=1.0)
    """Peak learning rate of the adapters."""
    min_learning_rate: float | None = Field(default=None, gt=0.0, le=1.0)
    """What the learning rate falls to by the last step, in the unit of learningRate; inverseSqrt
    stops falling there. Only for schedules that fall. Default: the schedule's own end, which is 0,
    for polynomial 0.001 of learningRate."""
    schedule: Literal[
        "cosine",
        "linear",
        "constant",
        "constantWithWarmup",
        "cosineWithRestarts",
        "polynomial",
        "inverseSqrt",
    ] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int | None = Field(default=None, ge=0, le=NUM_STEPS_MAX)
    """Optimiser steps over which the learning rate rises from 0. Excludes warmupRatio."""
    warmup_ratio: float | None = Field(default=None, ge=0.0, le=1.0)
    """The same as a share of all steps. Default: 0.03, unless warmupSteps is set."""
    batch_size: int = Field(default=16, ge=1, le=65536)
    """Sequences per optimiser step, over all workers."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=65536)
    """Sequences per forward pass of one rank. Default: the largest divisor of its part of the
    batch, up to 8 on a CPU and 64 on a GPU, that fits into memory, by a plan before loading and a
    measured pass where it is short. One that does not fit is lowered, unless recovery.oom is
    fail."""
    sequence_length: int = Field(default=2048, ge=8, le=1_048_576)
    """Longest sequence in tokens."""
    packing: bool = False
    """Put several rows into one sequence of up to sequenceLength tokens, without attention between
    them; batchSize and microBatchSize then count these sequences."""
    loss_on: Literal["response", "all"] = "response"
    """Which tokens are trained: the assistant's (with their end-of-turn), or all."""
    optimizer: Literal["adamw", "pagedAdamw8bit"] = "adamw"
    """The optimizer of the adapters; pagedAdamw8bit (bitsandbytes) holds its moments in 8 bits, on
    a GPU in memory that moves to the host when there is too little."""
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0.0, le=1e6)
    """Gradients are clipped to this global norm."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third slower."""
    seed: Seed = 42
    """Seed of adapter initialisation, order of rows and dropout."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop when the held-out metric no longer improves. Default: off."""
    recovery: RecoveryConfig = RecoveryConfig()
    """What happens when a step goes wrong."""
    lora_plus_ratio: float | None = Field(default=None, ge=1.0, le=1000.0)
    """Learning rate of the B matrices over that of the A matrices (Hayou et al. 2024, LoRA+).
    Default: off."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError(
                f"epochs ({self.epochs:g}) and maxSteps ({self.max_steps}) exclude each other; "
                "remove one of them (locally: --set training.epochs=null)"
            )
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError(
                f"warmupSteps ({self.warmup_steps}) and warmupRatio ({self.warmup_ratio:g}) "
                "exclude each other; remove one of them"
            )
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"microBatchSize ({self.micro_batch_size}) must not be greater than batchSize "
                f"({self.batch_size}); lower it or raise batchSize"
            )
        return self

    @model_validator(mode="after")
    def _least_rate_has_effect(self) -> Self:
        least = self.min_learning_rate
        if least is None:
            return self
        if least > self.learning_rate:
            raise ValueError(
                f"minLearningRate ({least:g}) must not be greater than learningRate "
                f"({self.learning_rate:g}); lower it"
            )
        if self.schedule in SCHEDULES_THAT_STAY:
            raise ValueError(
                f"minLearningRate has no effect for schedule {self.schedule}, which does not fall; "
                "remove it, or take another schedule"
            )
        return self
