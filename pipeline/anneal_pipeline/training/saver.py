"""Saving where a run stands: each step once, by the first rank, while the others wait."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from anneal_pipeline.checkpoint.manifest import CheckpointInfo
from anneal_pipeline.checkpoint.store import CheckpointStore
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.observer import CheckpointReport, Observer
from anneal_pipeline.training.memory import RowLimit
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.resume import INITIAL_NAME
from anneal_pipeline.training.state import RunState, write_state


@dataclass(kw_only=True)
class Saver:
    config: PipelineConfig
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: AdapterOptimizer
    evaluation_limit: RowLimit
    checkpoints: CheckpointStore
    checkpoint_info: Callable[[RunState], CheckpointInfo]
    observer: Observer
    ranks: Ranks
    scratch: Path
    clock: Callable[[], float]
    last_checkpoint: str | None = None
    """Name of what was saved last, or resumed from."""
    saved_step: int = -1
    """The step that need not be saved again; -1: whatever the step is, it has to be."""

    @property
    def initial(self) -> Path:
        """The folder with the state before the first step, beside local copies of checkpoints."""
        return self.checkpoints.scratch / INITIAL_NAME

    def save(self, state: RunState, *, cause: str) -> None:
        if self.saved_step != state.step:
            self.ranks.require_equal(list(self.parameters.values()))
            self.ranks.first_does(lambda: self._write_checkpoint(state, cause=cause))
            self.saved_step = state.step

    def save_initial(self, state: RunState) -> None:
        """Keep the state of a run that begins, so that a recovery can go back to it."""
        shutil.rmtree(self.initial, ignore_errors=True)
        self._write(self.initial, state)

    def _write_checkpoint(self, state: RunState, *, cause: str) -> None:
        began = self.clock()
        folder = self.scratch / "saving"
        shutil.rmtree(folder, ignore_errors=True)
        self._write(folder, state)
        manifest = self.checkpoints.save(folder, self.checkpoint_info(state))
        shutil.rmtree(folder)
        self.last_checkpoint = manifest.name
        self.observer.on_checkpoint(
            CheckpointReport(
                name=manifest.name,
                step=state.step,
                num_bytes=manifest.num_bytes,
                seconds=self.clock() - began,
                is_best=state.best_step == state.step,
                cause=cause,
            )
        )

    def _write(self, folder: Path, state: RunState) -> None:
        state.scaler = dict(self.optimizer.scaler.state_dict())
        state.evaluation_batch_size = self.evaluation_limit.rows
        write_state(
            folder,
            state=state,
            parameters=self.parameters,
            optimizer=self.optimizer.adamw,
            allocator=self.optimizer.allocator,
            observer_state=self.observer.save_state(),
            config=self.config.to_data(),
        )
