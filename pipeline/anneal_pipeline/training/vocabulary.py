"""A tokenizer of another model, and new tokens that no row has, found out before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.errors import MODEL_UNSUPPORTED, UserError

TOKENIZER_FIX = "put the tokenizer files that were published with the model beside its weights"
_CHUNK = 1 << 20
"""Tokens looked through at once."""


def check_token_ids(splits: Iterable[PreparedSplit], *, num_embeddings: int) -> None:
    """Refuse rows of any split with a token that the model has no embedding for."""
    highest = max(int(split.ids.max()) for split in splits if len(split))
    if highest >= num_embeddings:
        raise UserError(
            MODEL_UNSUPPORTED,
            f"The tokenizer gives token {highest}, but the model has embeddings for "
            f"{num_embeddings} tokens only: they do not belong together; {TOKENIZER_FIX}",
        )


def unseen_warning(split: PreparedSplit, tokens: Mapping[str, int]) -> str | None:
    """Say which of `tokens`, given with their ids, no training row has."""
    missing = torch.tensor(list(tokens.values()), dtype=split.ids.dtype)
    for part in torch.split(split.ids, _CHUNK):
        missing = missing[~torch.isin(missing, part)]
    unseen = [token for token, index in tokens.items() if index in missing.tolist()]
    if not unseen:
        return None
    return (
        f"tuning.newTokens names {', '.join(unseen)}, which no training row has, unless "
        "within a longer word: nothing is learnt about what is not there; correct the spelling, "
        "remove it, or add rows that have it"
    )
