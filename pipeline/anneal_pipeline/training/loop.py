"""The training loop: from wherever the run stands to its last step, or to a planned stop.

At every step boundary, in this order: evaluate if due, save if due, end or stop if asked, take a
step. What has been done at a boundary is in the state, so a run that resumes there does only the
rest.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from anneal_pipeline.checkpoint.manifest import CheckpointInfo
from anneal_pipeline.checkpoint.store import Best, CheckpointStore
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import StepPlan
from anneal_pipeline.data.prepare import PreparedData
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.device import used_memory_bytes
from anneal_pipeline.evaluation.perplexity import RESPONSE_PERPLEXITY, Evaluator
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.loading import TunedModel
from anneal_pipeline.observer import (
    STAGE_TRAINING,
    STAGE_TRAINING_EVALUATION,
    CheckpointReport,
    EvaluationReport,
    Observer,
    StepReport,
)
from anneal_pipeline.training.batches import Batch, StepBatches, collate, micro_batches
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.optimizer import AdapterOptimizer, StepOutcome
from anneal_pipeline.training.randomness import seed_step
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.schedule import rate_share
from anneal_pipeline.training.state import Evaluated, RunState, write_state

TUNED = "tuned"


@dataclass(kw_only=True)
class Trainer:
    config: PipelineConfig
    plan: StepPlan
    tuned: TunedModel
    path: LogitsPath
    optimizer: AdapterOptimizer
    evaluator: Evaluator
    data: PreparedData
    state: RunState
    checkpoints: CheckpointStore
    checkpoint_info: Callable[[RunState], CheckpointInfo]
    on_milestone: Callable[[int, RunState], None]
    """Called on the first rank with the percentage reached."""
    observer: Observer
    ranks: Ranks
    pad_id: int
    scratch: Path
    clock: Callable[[], float] = time.monotonic
    last_checkpoint: str | None = None
    _saved_step: int = -1
    _batches: StepBatches = field(init=False)
    _started: float = field(init=False)
    _first_step: int = field(init=False)

    def __post_init__(self) -> None:
        self._batches = StepBatches(
            lengths=tuple(self.data.train.lengths()),
            batch_size=self.plan.batch_size,
            seed=self.config.training.seed,
        )

    def run(self) -> bool:
        """Train; False when a planned stop came before the last step."""
        self._started = self.clock()
        self._first_step = self.state.step
        if self.state.step and self.last_checkpoint:
            self._saved_step = self.state.step
        self.tuned.model.train()
        while True:
            if not self._evaluate_if_due() or self.ranks.any(self.observer.should_stop()):
                self._save("stop")
                return False
            if self.state.step >= self.plan.total_steps:
                self._save("end")
                return True
            if self.state.step and self.state.step % self.plan.checkpoint_steps == 0:
                self._save("interval")
            self._step()
            self._write_milestones()

    def _step(self) -> None:
        step = self.state.step
        began = self.clock()
        seed_step(self.config.training.seed, rank=self.ranks.rank, step=step)
        rate = self.config.training.learning_rate * rate_share(
            self.config.training.schedule,
            step=step,
            total_steps=self.plan.total_steps,
            warmup_steps=self.plan.warmup_steps,
        )
        outcome = self.optimizer.step(
            self.path, self._own_batches(step), learning_rate=rate, step=step
        )
        self.state.step = step + 1
        self.state.num_trained_tokens += outcome.num_trained_tokens
        self.state.losses.append((self.state.step, outcome.loss))
        if self.ranks.is_first:
            self._report_step(outcome, rate=rate, seconds=self.clock() - began)

    def _own_batches(self, step: int) -> list[Batch]:
        groups = micro_batches(self._batches.rows_of(step), self.plan.micro_batch_size)
        return [
            collate(
                self.data.train,
                rows,
                pad_id=self.pad_id,
                train_all=self.config.training.loss_on == "all",
            )
            for rows in groups[self.ranks.rank :: self.ranks.world_size]
        ]

    def _report_step(self, outcome: StepOutcome, *, rate: float, seconds: float) -> None:
        step, total = self.state.step, self.plan.total_steps
        mean = (self.clock() - self._started) / (step - self._first_step)
        self.observer.on_step(
            StepReport(
                step=step,
                total_steps=total,
                epoch=step / self.plan.steps_per_epoch,
                loss=outcome.loss,
                learning_rate=rate,
                grad_norm=outcome.grad_norm,
                num_tokens=outcome.num_tokens,
                num_trained_tokens=outcome.num_trained_tokens,
                step_seconds=seconds,
                tokens_per_second=outcome.num_tokens / max(seconds, 1e-9),
                eta_seconds=mean * (total - step),
                memory_bytes=used_memory_bytes(self.ranks.device),
            )
        )
        self.observer.on_stage(STAGE_TRAINING, done=step, total=total, unit="steps")

    def _watched(self) -> tuple[str, PreparedSplit] | None:
        """The split evaluated while training."""
        name = "validation" if len(self.data.splits["validation"]) else self.data.held_out
        return (name, self.data.splits[name]) if name else None

    def _evaluate_if_due(self) -> bool:
        """False when asked to stop before the evaluation was done."""
        step = self.state.step
        # Before the first step the adapters add nothing: that would measure the base again.
        due = step > 0 and (step % self.plan.evaluation_steps == 0 or step == self.plan.total_steps)
        watched = self._watched()
        if watched is None or not due or self.state.evaluated_step == step:
            return True
        name, split = watched
        began = self.clock()
        measured = self.evaluator.measure(split, stage=STAGE_TRAINING_EVALUATION)
        if measured is None:
            return False
        self.state.evaluated_step = step
        self.state.evaluations.append(
            Evaluated(step=step, subject=TUNED, split=name, metrics=measured.metrics)
        )
        if self.ranks.is_first:
            self.observer.on_evaluation(
                EvaluationReport(
                    step=step,
                    subject=TUNED,
                    split=name,
                    metrics=measured.metrics,
                    num_rows=measured.num_rows,
                    num_tokens=measured.num_tokens,
                    seconds=self.clock() - began,
                )
            )
        self._keep_if_best(measured.metrics[RESPONSE_PERPLEXITY])
        return True

    def _keep_if_best(self, value: float) -> None:
        if self.state.best_value is not None and value >= self.state.best_value:
            return
        self.state.best_value = value
        self.state.best_step = self.state.step
        self._save("best")
        # Resumed at this very step, the checkpoint is the one that was resumed from.
        if self.ranks.is_first and self.last_checkpoint is not None:
            self.checkpoints.pin_best(
                Best(
                    name=self.last_checkpoint,
                    step=self.state.step,
                    metric=RESPONSE_PERPLEXITY,
                    value=value,
                )
            )

    def _save(self, cause: str) -> None:
        """Save this step, once; the first rank writes, the others wait."""
        if self._saved_step != self.state.step:
            if self.ranks.is_first:
                self._write_checkpoint(cause)
            self._saved_step = self.state.step
            self.ranks.barrier()

    def _write_checkpoint(self, cause: str) -> None:
        began = self.clock()
        folder = self.scratch / "saving"
        shutil.rmtree(folder, ignore_errors=True)
        self.state.scaler = dict(self.optimizer.scaler.state_dict())
        write_state(
            folder,
            state=self.state,
            parameters=trainable_parameters(self.tuned.model),
            optimizer=self.optimizer.adamw,
            observer_state=self.observer.save_state(),
        )
        manifest = self.checkpoints.save(folder, self.checkpoint_info(self.state))
        shutil.rmtree(folder)
        self.last_checkpoint = manifest.name
        self.observer.on_checkpoint(
            CheckpointReport(
                name=manifest.name,
                step=self.state.step,
                num_bytes=manifest.num_bytes,
                seconds=self.clock() - began,
                is_best=self.state.best_step == self.state.step,
                cause=cause,
            )
        )

    def _write_milestones(self) -> None:
        for percent in self.config.checkpoint.milestones:
            if self.ranks.is_first and self.plan.milestone_step(percent) == self.state.step:
                self.on_milestone(percent, self.state)
