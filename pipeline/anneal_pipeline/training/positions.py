"""Rows longer than the base has positions for, found out before one of them is reached."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.errors import MODEL_UNSUPPORTED, UserError

_POSITION_MODULES = ("wpe", "embed_positions", "position_embeddings")
"""What GPT-2 and its kin, OPT and BERT's kin call their table of learned positions."""


def check_lengths(splits: Iterable[PreparedSplit], *, model: nn.Module) -> str | None:
    """Refuse rows that a table of learned positions cannot hold.

    Rotary positions have no table: rows beyond the length that the base was trained for can be
    computed, but the base knows nothing of them, which is returned as a warning.
    """
    longest = max([0, *(max(split.lengths()) for split in splits if len(split))])
    table = learned_positions(model)
    if table is not None and longest > table:
        raise UserError(
            MODEL_UNSUPPORTED,
            f"training.sequenceLength: the longest row has {longest} tokens, but the model has "
            f"{table} positions; set training.sequenceLength to {table} or less, or take a base "
            "with a longer context",
        )
    trained = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if table is None and isinstance(trained, int) and longest > trained:
        return (
            f"The longest row has {longest} tokens, more than the {trained} positions that the "
            "base was trained for; what lies beyond may be learnt badly: lower "
            "training.sequenceLength, or take a base with a longer context"
        )
    return None


def learned_positions(model: nn.Module) -> int | None:
    """Tokens that the table of a model with learned positions holds; None without a table."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITION_MODULES:
            # OPT's table begins with rows that no token takes.
            return module.num_embeddings - int(getattr(module, "offset", 0))
    return None
