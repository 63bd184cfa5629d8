"""A tokenizer that does not belong to the model is named before training."""

from __future__ import annotations

import pytest
import torch

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.errors import UserError
from anneal_pipeline.training.vocabulary import TOKENIZER_FIX, check_token_ids, unseen_warning


def split_of(*ids: int) -> PreparedSplit:
    return PreparedSplit(
        ids=torch.tensor(ids, dtype=torch.int32),
        is_response=torch.ones(len(ids), dtype=torch.uint8),
        offsets=torch.tensor([0, len(ids)] if ids else [0]),
    )


SPLIT, LOWER, EMPTY = split_of(3, 339, 7), split_of(3, 5), split_of()


def test_the_last_embedding_is_one() -> None:
    check_token_ids([EMPTY, SPLIT], num_embeddings=340)


@pytest.mark.parametrize("splits", [[SPLIT, LOWER], [LOWER, EMPTY, SPLIT]])
def test_a_token_beyond_the_embeddings_is_refused_in_any_split(splits: list[PreparedSplit]) -> None:
    with pytest.raises(UserError, match=r"token 339, but .* for 339 tokens only") as caught:
        check_token_ids(splits, num_embeddings=339)
    assert caught.value.reason == "ModelUnsupported"
    assert caught.value.message.endswith(TOKENIZER_FIX)


def test_new_tokens_that_no_training_row_has_are_named() -> None:
    assert unseen_warning(SPLIT, {}) is None
    assert unseen_warning(SPLIT, {"<a>": 3, "<b>": 7}) is None
    said = unseen_warning(SPLIT, {"<a>": 3, "<b>": 8, "<c>": 9})
    assert said is not None
    assert said.startswith("tuning.newTokens names <b>, <c>, which no training row has")
