"""Which rank each target's adapter has, and whose patterns say so; without torch, for the memory
plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from anneal_pipeline.config.tuning import ORTHOGONAL, LoraConfig
from anneal_pipeline.errors import ADAPTER_IMPOSSIBLE, TARGET_MODULES_NOT_FOUND, UserError
from anneal_pipeline.model.layers import Layer, kinds


def rank_of(name: str, config: LoraConfig) -> int:
    """The rank that the adapter on module `name` begins with."""
    for pattern, rank in config.rank_pattern.items():
        if _rule(pattern).match(name):
            return rank
    return config.initial_rank


def check_ranks(layers: Sequence[Layer], config: LoraConfig) -> None:
    """Refuse ranks and alphas for no adapter at all, and more rank than a weight itself has."""
    names = [layer.name for layer in layers]
    _check_patterns(names, config.rank_pattern, field="rankPattern")
    _check_patterns(names, config.alpha_pattern, field="alphaPattern")
    for layer in layers:
        rank = rank_of(layer.name, config)
        if rank > layer.max_rank:
            raise UserError(
                ADAPTER_IMPOSSIBLE,
                f"tuning.lora gives {layer.name} rank {rank}, more than a weight of "
                f"{layer.out_features} x {layer.in_features} has; {_remedy(layer, config)}",
            )
        if rank % 2 and config.initialization == ORTHOGONAL:
            raise UserError(
                ADAPTER_IMPOSSIBLE,
                f"tuning.lora gives {layer.name} rank {rank}, but initialization {ORTHOGONAL} "
                "needs an even rank; change the rank, or use initialization default",
            )


def _remedy(layer: Layer, config: LoraConfig) -> str:
    if config.rank_allocation is not None:
        return (
            "every adapter begins with more than the average: lower "
            f"tuning.lora.rankAllocation.initialRank to {layer.max_rank} and rank below it"
        )
    return f"lower tuning.lora.rank to {layer.max_rank} or give this module its own in rankPattern"


def _check_patterns(targets: Sequence[str], patterns: Iterable[str], *, field: str) -> None:
    """PEFT would pass over a pattern that matches nothing in silence."""
    for pattern in patterns:
        try:
            rule = _rule(pattern)
        except re.error as error:
            raise UserError(
                TARGET_MODULES_NOT_FOUND,
                f"tuning.lora.{field} names {pattern}, which is no regular expression "
                f"({error}); name a module or its last part",
            ) from error
        if not any(rule.match(name) for name in targets):
            raise UserError(
                TARGET_MODULES_NOT_FOUND,
                f"tuning.lora.{field} names {pattern}, which matches no module that gets an "
                f"adapter; these do: {kinds(targets)}; name one of them",
            )


def _rule(pattern: str) -> re.Pattern[str]:
    """The rule by which PEFT looks a module's rank and alpha up (peft.utils.get_pattern_key)."""
    return re.compile(rf"(.*\.)?({pattern})$")
