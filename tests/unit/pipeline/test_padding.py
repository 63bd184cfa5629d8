"""Padding is on the right, where causal attention never looks: models get no mask and need none."""

from __future__ import annotations

import pytest
import torch
from tests.unit.pipeline.families import FAMILIES, make_family

from anneal_pipeline.training.batches import Batch

LENGTHS = (9, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_gives_the_same_beside_a_longer_one(family: str) -> None:
    model = make_family(family).eval()
    ids = torch.randint(3, 60, (2, max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    attention = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        attention[row, :length] = 1
    ids *= attention
    inputs = Batch(ids=ids, attention_mask=attention, labels=ids).inputs()
    assert inputs["attention_mask"] is None
    with torch.no_grad():
        together = model(**inputs, use_cache=False).logits
        for row, length in enumerate(LENGTHS):
            alone = model(input_ids=ids[row : row + 1, :length], use_cache=False).logits
            torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-5, atol=1e-6)
