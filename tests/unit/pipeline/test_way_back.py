"""Going back undoes the training of a run, and keeps what it has learnt since."""

from __future__ import annotations

from typing import Any

from anneal_pipeline.training.state import RunState
from anneal_pipeline.training.way_back import keep_what_was_learnt

LEARNT: dict[str, Any] = {
    "rate_factor": 0.25,
    "interventions": 2,
    "skipped_rows": [3, 8],
    "num_skipped_with_steps": 1,
    "micro_batch_size": 2,
    "is_memory_short": True,
    "evaluation_batch_size": 4,
    "told": ["S3"],
    "lineage": ["a hash"],
    "facts": {"world_size": 2},
}


def test_rows_left_out_memory_and_rate_are_kept_and_the_rest_is_what_was_saved() -> None:
    saved = RunState(step=4, num_trained_tokens=400, losses=[(4, 2.0)], scaler={"scale": 8.0})
    now = RunState(step=9, num_trained_tokens=900, losses=[(9, 7.0)], **LEARNT)
    keep_what_was_learnt(saved, now)
    assert {name: getattr(saved, name) for name in LEARNT} == LEARNT
    assert (saved.step, saved.num_trained_tokens, saved.losses) == (4, 400, [(4, 2.0)])
    assert saved.scaler == {"scale": 8.0}
