"""What is unusual about the adapters of a run, in sentences with its numbers.

The bands are those of the specification: a trainable share of 0.1 to 2 % is usual and over 5 % is
not; adapters with their gradients and moments below 20 % of the base's memory are usual and over
50 % are not; alpha is usual from rank to 4 x rank and below 512. Nothing here refuses: what a user
sets is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anneal_pipeline.config.tuning import DEFAULT, GAUSSIAN, LoraConfig
from anneal_pipeline.model.layers import Layer, kinds
from anneal_pipeline.model.task_ranks import (
    ALPHA_PER_RANK,
    ANY_TASK,
    HARD_REASONING,
    INSTRUCTIONS,
    RATIO_USUAL,
)

SHARE_MAX = 0.05
OVERHEAD_MAX = 0.5
RANK_HIGH = 256
ALPHA_HIGH = 512.0
BYTES_PER_TRAINED = 16
"""fp32 weight, gradient and the two moments of AdamW."""


def advice(
    config: LoraConfig, *, num_trainable: int, num_parameters: int, base_bytes: int
) -> Iterator[str]:
    """Yield a warning for every number outside its band."""
    share = num_trainable / num_parameters
    if share > SHARE_MAX:
        yield (
            f"{share:.1%} of the parameters are trained, where 0.1 to 2 % are usual and over "
            f"{SHARE_MAX:.0%} is not: lower tuning.lora.rank ({config.rank}) or name fewer "
            "targetModules, or the run needs the memory and overfits like full fine-tuning"
        )
    overhead = num_trainable * BYTES_PER_TRAINED / base_bytes
    if overhead > OVERHEAD_MAX:
        yield (
            f"The adapters need {overhead:.0%} of the base model's memory with their gradients and "
            f"moments, where under 20 % is usual and over {OVERHEAD_MAX:.0%} is not: lower "
            f"tuning.lora.rank ({config.rank}) or name fewer targetModules"
        )
    if config.rank >= RANK_HIGH:
        yield (
            f"tuning.lora.rank {config.rank} is for research with much data and overfits easily; "
            f"{INSTRUCTIONS.ranks} is usual for {INSTRUCTIONS.task}, {HARD_REASONING.ranks} for "
            f"{HARD_REASONING.task}"
        )
    elif config.alpha >= ALPHA_HIGH:
        yield (
            f"tuning.lora.alpha {config.alpha:g} is for research: {ANY_TASK.alphas} is usual, by "
            "the rank that the task asks for; such steps forget what the base knew"
        )
    yield from _scale_advice(config)


def _scale_advice(config: LoraConfig) -> Iterator[str]:
    low, high = RATIO_USUAL
    ratio = config.alpha / config.rank
    if not config.use_rslora and not low <= ratio <= high:
        yield (
            f"tuning.lora.alpha {config.alpha:g} is {ratio:.2g} times rank {config.rank}, where "
            f"{low} (cautious) to {high} (bold) is usual and {ALPHA_PER_RANK} a good start: it "
            "scales the adapter's output, and so its learning rate, by this factor"
        )


def experts_left_out(layers: tuple[Layer, ...], config: LoraConfig) -> str:
    """Said when found experts get no adapter."""
    options = [f"dropout is {config.dropout:g}"] if config.dropout > 0 else []
    options += ["useDora is on"] if config.use_dora else []
    options += ["rankAllocation is on"] if config.rank_allocation is not None else []
    if config.initialization not in (DEFAULT, GAUSSIAN):
        options.append(f"initialization is {config.initialization}")
    option = " and ".join(options)
    return (
        f"The stacked experts ({kinds(layer.name for layer in layers)}) get no adapter because "
        f"tuning.lora.{option}, which cannot be applied to them; without it they are trained too"
    )


def experts_left_whole(layers: Sequence[Layer], *, num_parameters: int) -> str:
    """Said when a base in 4 bits has weights that bitsandbytes cannot hold in 4 bits."""
    count = sum(layer.num_experts * layer.in_features * layer.out_features for layer in layers)
    share = count / num_parameters
    return (
        f"The stacked experts ({kinds(layer.name for layer in layers)}) stay unquantised: "
        f"{count:,} of {num_parameters:,} parameters ({share:.0%}) are not held in 4 bits, because "
        "bitsandbytes quantises linear layers only; plan the memory for them"
    )
