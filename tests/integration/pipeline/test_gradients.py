"""The gradients of a step: cutting its batch up changes nothing."""

from __future__ import annotations

import pytest
import torch
from tests.integration.pipeline.unequal_rows import ALONE, NUM_ROWS

from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.model.loading import TunedModel
from anneal_pipeline.training.batches import collate, micro_batches
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.optimizer import AdapterOptimizer


@pytest.mark.parametrize("num_rows", [8, 7, 5], ids=["full", "last of 7", "last of 5"])
@pytest.mark.parametrize("size", [4, 3, 2, 1])
def test_mean_of_means_1x8_2x4_4x2_8x1_have_the_same_gradients(
    tuned: TunedModel,
    adapters: dict[str, torch.nn.Parameter],
    split: PreparedSplit,
    size: int,
    num_rows: int,
) -> None:
    """Pitfall: mean-of-means under accumulation.

    Micro-batch by accumulation on rows of unequal length, a partial last window included.
    """
    path = LogitsPath(tuned.model)
    tuned.model.train()
    optimizer = AdapterOptimizer(
        TrainingConfig(max_grad_norm=1e6), model=tuned.model, compute=torch.float32, ranks=ALONE
    )
    seen = []
    for micro_batch in (NUM_ROWS, size):
        batches = [
            collate(split, rows, pad_id=0, train_all=False)
            for rows in micro_batches(range(num_rows), micro_batch)
        ]
        outcome = optimizer.gather(path, batches)
        seen.append(
            (outcome, {n: p.grad.clone() for n, p in adapters.items() if p.grad is not None})
        )
        optimizer.take_back()
    (whole, want), (cut, got) = seen
    assert got.keys() == want.keys() == adapters.keys()
    assert cut.loss == pytest.approx(whole.loss, rel=1e-5)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    assert (cut.num_tokens, cut.num_trained_tokens) == (whole.num_tokens, whole.num_trained_tokens)
    for name in want:
        scale = float(want[name].abs().max())
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5 * scale)


def test_a_batch_without_a_trained_token_is_no_nan(tuned: TunedModel, split: PreparedSplit) -> None:
    """Pitfall: truncation leaves all -100: loss 0 or NaN."""
    silent = PreparedSplit(
        ids=split.ids, is_response=torch.zeros_like(split.is_response), offsets=split.offsets
    )
    path = LogitsPath(tuned.model)
    optimizer = AdapterOptimizer(
        TrainingConfig(), model=tuned.model, compute=torch.float32, ranks=ALONE
    )
    one = collate(split, [0, 1], pad_id=0, train_all=False)
    none = collate(silent, [2, 3], pad_id=0, train_all=False)
    alone = optimizer.gather(path, [none])
    assert (alone.loss, alone.grad_norm, alone.num_trained_tokens) == (0.0, 0.0, 0)
    assert alone.is_finite
    optimizer.take_back()
    losses = []
    for batches in ([one], [one, none]):
        losses.append(optimizer.gather(path, batches).loss)
        optimizer.take_back()
    assert losses[0] == losses[1] > 0


def test_an_fp16_step_without_any_row_is_taken_back(
    tuned: TunedModel, split: PreparedSplit
) -> None:
    optimizer = AdapterOptimizer(
        TrainingConfig(), model=tuned.model, compute=torch.float16, ranks=ALONE
    )
    path = LogitsPath(tuned.model)
    assert optimizer.gather(path, []).num_trained_tokens == 0
    optimizer.take_back()
    batch = collate(split, [0], pad_id=0, train_all=False)
    assert optimizer.gather(path, [batch]).num_trained_tokens > 0
    optimizer.take_back()
    optimizer.drop()


@pytest.mark.parametrize("share", [0.1, 10.0], ids=["above the limit", "below it"])
def test_gradients_are_clipped_to_the_limit_and_their_norm_is_told_as_it_was(
    tuned: TunedModel, adapters: dict[str, torch.nn.Parameter], split: PreparedSplit, share: float
) -> None:
    path = LogitsPath(tuned.model)
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)

    def gathered(limit: float) -> tuple[float, torch.Tensor]:
        optimizer = AdapterOptimizer(
            TrainingConfig(max_grad_norm=limit),
            model=tuned.model,
            compute=torch.float32,
            ranks=ALONE,
        )
        told = optimizer.gather(path, [batch]).grad_norm
        grads = torch.cat([p.grad.flatten() for p in adapters.values() if p.grad is not None])
        optimizer.take_back()
        return told, grads

    norm, whole = gathered(1e6)
    assert float(whole.norm()) == pytest.approx(norm, rel=1e-5)
    told, clipped = gathered(share * norm)
    assert told == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(clipped, whole * min(1.0, share), rtol=1e-4, atol=1e-8)
