"""The best checkpoint: named in the store, and taken up again as the result."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from anneal_pipeline.checkpoint.store import Best, CheckpointStore
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.resume import share_checkpoint
from anneal_pipeline.training.state import RunState, load_weights


def pin_best(checkpoints: CheckpointStore, state: RunState, *, metric: str) -> None:
    """Let `best.json` name what the state knows as the best, unless it does."""
    if state.best_checkpoint is None or state.best_step is None or state.best_value is None:
        return
    best = Best(
        name=state.best_checkpoint, step=state.best_step, metric=metric, value=state.best_value
    )
    if checkpoints.best() != best:
        checkpoints.pin_best(best)


def restore_best(
    state: RunState,
    *,
    checkpoints: CheckpointStore,
    parameters: Mapping[str, torch.nn.Parameter],
    ranks: Ranks,
) -> bool:
    """Put the best checkpoint's weights into the model; False when it cannot be read."""
    best = state.best_checkpoint
    if best is None:
        return False
    saved = share_checkpoint(lambda: checkpoints.fetch(best), checkpoints=checkpoints, ranks=ranks)
    if saved is None:
        return False
    load_weights(saved.folder, parameters)
    state.result_step = state.best_step
    return True
