"""Rows longer than the base has positions for are met before training, not in the middle of it."""

from __future__ import annotations

import pytest
import torch
from tests.unit.pipeline.families import make_family

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.errors import UserError
from anneal_pipeline.training.positions import check_lengths


def split_with_a_row_of(num_tokens: int) -> PreparedSplit:
    return PreparedSplit(
        ids=torch.zeros(num_tokens + 3, dtype=torch.int32),
        is_response=torch.ones(num_tokens + 3, dtype=torch.uint8),
        offsets=torch.tensor([0, 3, num_tokens + 3]),
    )


EMPTY = PreparedSplit(
    ids=torch.zeros(0, dtype=torch.int32),
    is_response=torch.zeros(0, dtype=torch.uint8),
    offsets=torch.tensor([0]),
)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_table_of_learned_positions_is_a_limit(family: str) -> None:
    model = make_family(family)
    last = model.config.max_position_embeddings
    assert check_lengths([EMPTY, split_with_a_row_of(last)], model=model) is None
    with pytest.raises(UserError, match=f"longest row has {last + 1} tokens.* {last} positions"):
        check_lengths([EMPTY, split_with_a_row_of(last + 1)], model=model)


def test_the_limit_is_the_models_own() -> None:
    """One row more than the message says would fail in the model itself."""
    model = make_family("opt")
    last = model.config.max_position_embeddings
    model(input_ids=torch.ones(1, last, dtype=torch.long))
    with pytest.raises(IndexError):
        model(input_ids=torch.ones(1, last + 1, dtype=torch.long))


def test_rotary_positions_go_on_with_a_warning() -> None:
    model = make_family("llama")
    last = model.config.max_position_embeddings
    assert check_lengths([split_with_a_row_of(last)], model=model) is None
    warning = check_lengths([split_with_a_row_of(last + 1)], model=model)
    assert f"more than the {last} positions" in str(warning)


def test_without_positions_there_is_nothing_to_say() -> None:
    assert check_lengths([split_with_a_row_of(100_000)], model=make_family("bloom")) is None
