"""Metrics of a split: those of its tokens, whatever the batch, and those of training."""

from __future__ import annotations

import pytest
from tests.integration.pipeline.unequal_rows import ALONE, NUM_ROWS

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.evaluation.perplexity import LOSS, Evaluator
from anneal_pipeline.model.loading import TunedModel
from anneal_pipeline.training.batches import collate, collate_packed
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.memory import RowLimit


def measured(tuned: TunedModel, split: PreparedSplit, *, rows_at_once: int) -> dict[str, float]:
    evaluator = Evaluator(
        model=tuned.model,
        path=LogitsPath(tuned.model),
        ranks=ALONE,
        pad_id=0,
        limit=RowLimit(rows=rows_at_once, may_halve=False),
        wanted=("perplexity",),
        should_stop=lambda: False,
        on_progress=lambda stage, done, total: None,
        on_halved=lambda rows, rank=0: None,
    )
    found = evaluator.measure(split, stage="evaluation")
    assert found is not None
    return dict(found.metrics)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_perplexity_does_not_depend_on_the_batch(
    tuned: TunedModel, split: PreparedSplit, batch_size: int
) -> None:
    """Pitfall: perplexity from padded labels or from the mean of batch means."""
    want = measured(tuned, split, rows_at_once=2)
    assert measured(tuned, split, rows_at_once=batch_size) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("is_packed", [False, True], ids=["unpacked", "packed"])
def test_eval_packed_or_masked_otherwise_than_train_would_have_another_loss(
    tuned: TunedModel, split: PreparedSplit, is_packed: bool
) -> None:
    """Pitfall: eval packed or masked otherwise than train."""
    if is_packed:
        pairs = [(row, row + 1) for row in range(0, NUM_ROWS, 2)]
        batch = collate_packed(split, pairs, pad_id=0, train_all=False)
    else:
        batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    tuned.model.eval()
    total = LogitsPath(tuned.model).backward(batch, weigh=lambda losses: losses)
    tuned.model.zero_grad()
    want = measured(tuned, split, rows_at_once=2)[LOSS]
    assert total / batch.num_trained_tokens == pytest.approx(want, rel=1e-5)
