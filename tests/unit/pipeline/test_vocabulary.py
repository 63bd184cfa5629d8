"""A tokenizer that does not belong to the model is named before training."""

from __future__ import annotations

import pytest
import torch

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.errors import UserError
from anneal_pipeline.training.vocabulary import check_token_ids

SPLIT = PreparedSplit(
    ids=torch.tensor([3, 339, 7], dtype=torch.int32),
    is_response=torch.ones(3, dtype=torch.uint8),
    offsets=torch.tensor([0, 3]),
)


def test_the_last_embedding_is_one() -> None:
    check_token_ids(SPLIT, num_embeddings=340)


def test_a_token_beyond_the_embeddings_is_refused() -> None:
    with pytest.raises(UserError, match=r"token 339, but .* for 339 tokens only") as caught:
        check_token_ids(SPLIT, num_embeddings=339)
    assert caught.value.reason == "ModelUnsupported"
