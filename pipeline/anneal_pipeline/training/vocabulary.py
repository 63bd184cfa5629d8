"""A tokenizer of another model, found out before its ids are looked up on an accelerator."""

from __future__ import annotations

from collections.abc import Iterable

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.errors import MODEL_UNSUPPORTED, UserError


def check_token_ids(splits: Iterable[PreparedSplit], *, num_embeddings: int) -> None:
    """Refuse rows of any split with a token that the model has no embedding for."""
    highest = max(int(split.ids.max()) for split in splits if len(split))
    if highest >= num_embeddings:
        raise UserError(
            MODEL_UNSUPPORTED,
            f"The tokenizer gives token {highest}, but the model has embeddings for "
            f"{num_embeddings} tokens only: they do not belong together; put the tokenizer files "
            "of the model beside its weights",
        )
