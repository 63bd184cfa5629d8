"""The way back: the newest healthy state from before, loaded, and what came after it forgotten.

The first rank finds it for all. What the run has learnt of its rows, its memory and its rate since
then it keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from anneal_pipeline.checkpoint.manifest import order_of
from anneal_pipeline.checkpoint.store import CheckpointStore, SavedCheckpoint
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.training.best import BestCheckpoint
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.resume import share_checkpoint
from anneal_pipeline.training.runaway import is_healthy
from anneal_pipeline.training.state import RunState, load_state, read_state


@dataclass(frozen=True, kw_only=True)
class WayBack:
    config: PipelineConfig
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: AdapterOptimizer
    checkpoints: CheckpointStore
    initial: Path
    """Folder with the state before the first step."""
    best: BestCheckpoint
    ranks: Ranks

    def take(self, state: RunState) -> RunState | None:
        """Put model and optimizer where the run was well; None where nothing from then is left."""
        saved = self._healthy_checkpoint(state)
        folder = saved.folder if saved is not None else self.initial
        if not folder.is_dir():
            return None
        restored = read_state(folder)
        load_state(folder, restored, parameters=self.parameters, optimizer=self.optimizer)
        keep_what_was_learnt(restored, state)
        self._forget_after(restored)
        return restored

    def _healthy_checkpoint(self, state: RunState) -> SavedCheckpoint | None:
        """The newest one of this run whose loss showed no sign yet."""

        def find() -> SavedCheckpoint | None:
            for name in self.checkpoints.names():
                order = order_of(name)
                if order is None or order[0] > state.step:
                    continue
                found = self._fetch_of_this_run(name, state=state)
                if found is not None and _is_healthy(found):
                    return found
            return None

        return share_checkpoint(find, checkpoints=self.checkpoints, ranks=self.ranks)

    def _fetch_of_this_run(self, name: str, *, state: RunState) -> SavedCheckpoint | None:
        """A checkpoint unless it is damaged or a run wrote it that this one does not go on from."""
        is_own = self.checkpoints.is_own(name)
        if not is_own and not self._resumes:
            return None
        saved = self.checkpoints.fetch(name)
        if saved is None or is_own:
            return saved
        own = {self.config.mathematical_hash(), *state.lineage}
        return saved if saved.manifest.config_hash in own else None

    @property
    def _resumes(self) -> bool:
        return self.config.checkpoint.resume == "Auto"

    def _forget_after(self, restored: RunState) -> None:
        """Checkpoints from after it go, so that no later attempt takes them up."""

        def discard() -> list[str]:
            self.checkpoints.discard_after(restored.step, own_only=not self._resumes)
            return self.checkpoints.names()

        if restored.best_checkpoint not in self.ranks.share(discard):
            restored.best_checkpoint = restored.best_step = restored.best_value = None
        self.ranks.first_does(lambda: self.best.pin(restored))


def _is_healthy(saved: SavedCheckpoint) -> bool:
    return is_healthy([loss for _, loss in read_state(saved.folder).losses])


def keep_what_was_learnt(restored: RunState, state: RunState) -> None:
    """Going back undoes the training, not the lessons."""
    restored.rate_factor = state.rate_factor
    restored.interventions = state.interventions
    restored.skipped_rows = state.skipped_rows
    restored.num_skipped_with_steps = state.num_skipped_with_steps
    restored.micro_batch_size = state.micro_batch_size
    restored.is_memory_short = state.is_memory_short
    restored.evaluation_batch_size = state.evaluation_batch_size
    restored.told = state.told
    restored.lineage = state.lineage
    restored.facts = state.facts
