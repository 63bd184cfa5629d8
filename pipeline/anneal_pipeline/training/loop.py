"""The training loop: from wherever the run stands to its last step, or to a planned stop.

At every step boundary, in this order: evaluate if due, save if due, end or stop if asked, take a
step. What has been done at a boundary is in the state, so a run that resumes there does only the
rest. When an evaluation is due is for `evaluation_times`, what goes wrong within a step for
`recovery`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from anneal_pipeline.checkpoint.store import CheckpointStore
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import StepPlan
from anneal_pipeline.config.training import EarlyStoppingConfig
from anneal_pipeline.data.prepare import PreparedData
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.device import used_memory_bytes
from anneal_pipeline.efficiency.adapters import list_adapters
from anneal_pipeline.efficiency.gradients import GradientWatch
from anneal_pipeline.evaluation.perplexity import LOSS, RESPONSE_PERPLEXITY, Evaluator
from anneal_pipeline.evaluation.report import TUNED
from anneal_pipeline.model.loading import TunedModel
from anneal_pipeline.observer import (
    EVENT_BEST_RESTORED,
    EVENT_DIAGNOSIS,
    EVENT_EARLY_STOP,
    EVENT_RANKS_SETTLED,
    EVENT_WARNING,
    STAGE_TRAINING,
    STAGE_TRAINING_EVALUATION,
    Observer,
)
from anneal_pipeline.training.batches import Batch, collate, collate_packed, micro_batches
from anneal_pipeline.training.best import pin_best, restore_best
from anneal_pipeline.training.diagnosis import Diagnosis, Diagnostician, StepFacts
from anneal_pipeline.training.early_stopping import gain, stale_evaluations
from anneal_pipeline.training.evaluation_times import is_due
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.memory import MemoryRanOutError, RowLimit
from anneal_pipeline.training.optimizer import AdapterOptimizer, StepOutcome
from anneal_pipeline.training.randomness import seed_step
from anneal_pipeline.training.rank_allocator import describe_ranks
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.recovery import Recovery
from anneal_pipeline.training.runaway import WINDOW
from anneal_pipeline.training.saver import Saver
from anneal_pipeline.training.schedule import learning_rate
from anneal_pipeline.training.sequences import StepSequences
from anneal_pipeline.training.state import Evaluated, RunState
from anneal_pipeline.training.step_report import report_of


@dataclass(kw_only=True)
class Trainer:
    config: PipelineConfig
    plan: StepPlan
    tuned: TunedModel
    path: LogitsPath
    optimizer: AdapterOptimizer
    limit: RowLimit
    """Sequences per forward pass of a training step."""
    evaluator: Evaluator
    data: PreparedData
    sequences: StepSequences
    state: RunState
    checkpoints: CheckpointStore
    saver: Saver
    on_milestone: Callable[[int, RunState], None]
    """Called on the first rank with the percentage reached."""
    observer: Observer
    ranks: Ranks
    pad_id: int
    clock: Callable[[], float] = time.monotonic
    _started: float = field(init=False)
    _first_step: int = field(init=False)
    _early: EarlyStoppingConfig | None = field(init=False)
    _recovery: Recovery = field(init=False)
    _doctor: Diagnostician = field(init=False)
    _gradients: GradientWatch = field(init=False)
    metric: str = field(init=False)
    """What the best checkpoint is judged by."""

    def __post_init__(self) -> None:
        self._early = self.config.training.early_stopping
        self.metric = self._early.metric if self._early else RESPONSE_PERPLEXITY
        self.limit.rows = min(self.limit.rows, self.state.micro_batch_size or self.limit.rows)
        self._doctor = Diagnostician(config=self.config, compute=self.tuned.compute)
        self._gradients = GradientWatch(
            list_adapters(self.tuned.model), max_norm=self.config.training.max_grad_norm
        )
        self._recovery = Recovery(
            config=self.config,
            data=self.data,
            parameters=self.saver.parameters,
            optimizer=self.optimizer,
            path=self.path,
            limit=self.limit,
            checkpoints=self.checkpoints,
            observer=self.observer,
            ranks=self.ranks,
            initial=self.saver.initial,
            metric=self.metric,
        )

    def run(self) -> bool:
        """Train; False when a planned stop came before the last step."""
        with self.ranks.together():
            self._begin()
        if self.saver.last_checkpoint is not None:
            self._write_milestones()  # killed after the checkpoint, it may not have got out
        while True:
            if not self._evaluate_if_due() or self.ranks.any(self.observer.should_stop()):
                self.saver.save(self.state, cause="stop")
                return False
            if self._is_over():
                self.saver.save(self.state, cause="end")
                self._restore_best()
                return True
            if self.state.step and self.state.step % self.plan.checkpoint_steps == 0:
                self.saver.save(self.state, cause="interval")
            self._step()
            self._write_milestones()

    def _begin(self) -> None:
        self._warn_of_idle_early_stopping()
        self._diagnose(self._doctor.at_start())
        self._started = self.clock()
        self._first_step = self.state.step
        self.tuned.model.train()
        if self.saver.last_checkpoint is None:
            self.saver.save_initial(self.state)
            return
        self.saver.saved_step = self.state.step
        if self.ranks.is_first:
            pin_best(self.checkpoints, self.state, metric=self.metric)

    def _warn_of_idle_early_stopping(self) -> None:
        if self._early is not None and self._judged_since >= self.plan.total_steps:
            self._tell(
                EVENT_WARNING,
                f"training.earlyStopping has no effect: ranks fall until step {self._judged_since} "
                f"of {self.plan.total_steps}, and no evaluation before counts; lower "
                "tuning.lora.rankAllocation.endShare, or remove training.earlyStopping",
            )

    def _is_over(self) -> bool:
        if self.state.step >= self.plan.total_steps:
            return True
        if self._early is None or self.state.best_value is None:
            return False
        values = self._watched_values(self.metric, since=self._judged_since)
        stale = stale_evaluations(self.metric, values, min_delta=self._early.min_delta)
        if stale < self._early.patience:
            return False
        self._tell(
            EVENT_EARLY_STOP,
            f"Stopping early at step {self.state.step} of {self.plan.total_steps}: {self.metric} "
            f"did not improve by more than {self._early.min_delta:g} in {stale} evaluations; the "
            f"best is {self.state.best_value:.4g} at step {self.state.best_step}",
            step=self.state.step,
            bestStep=self.state.best_step,
        )
        return True

    def _restore_best(self) -> None:
        """Take the best checkpoint's weights as the result, where early stopping asks for it."""
        state, wanted = self.state, self._early is not None and self._early.restore_best
        if not wanted or state.best_checkpoint is None or state.best_step == state.step:
            return
        if restore_best(
            state, checkpoints=self.checkpoints, parameters=self.saver.parameters, ranks=self.ranks
        ):
            self._tell(
                EVENT_BEST_RESTORED,
                f"The result is that of step {state.best_step}, the best evaluation: "
                f"{self.metric} {state.best_value:.4g}",
                step=state.best_step,
            )
        else:
            self._tell(
                EVENT_WARNING,
                f"The best checkpoint {state.best_checkpoint} cannot be read: the result is that "
                "of the last step",
            )

    def _step(self) -> None:
        step, began = self.state.step, self.clock()
        while True:
            sequences = self.sequences.of_step(step, without=frozenset(self.state.skipped_rows))
            outcome = self._gather(step, sequences)
            if outcome.is_finite:
                break
            self.optimizer.take_back()
            rows = list(chain.from_iterable(sequences))
            restored = self._recovery.after_non_finite(
                self.state, rows=rows, outcome=outcome, batch_of=self._batch_of_row
            )
            if restored is not None:
                return self._go_back(restored)
        if outcome.num_trained_tokens:
            self._take(outcome, began=began)
        else:
            if self._recovery.pass_over(self.state, num_sequences=len(sequences)):
                self._tell_ranks()

    def _gather(self, step: int, sequences: Sequence[tuple[int, ...]]) -> StepOutcome:
        """The gradients of the step, with as many sequences at once as memory holds."""
        while True:
            seed_step(self.config.training.seed, rank=self.ranks.rank, step=step)
            try:
                return self.optimizer.gather(self.path, self._own_batches(sequences))
            except MemoryRanOutError:
                self._recovery.after_memory_ran_out(self.state, sequences=sequences)

    def _take(self, outcome: StepOutcome, *, began: float) -> None:
        """Apply the gradients and look at what came of it."""
        peak = self._recovery.rate(self.state)
        rate = learning_rate(self.config.training, plan=self.plan, step=self.state.step, peak=peak)
        self._keep_gradients(outcome.grad_norm)
        self.state.step += 1
        if self.optimizer.apply(rate, step=self.state.step):
            self._tell_ranks()
        self.state.num_trained_tokens += outcome.num_trained_tokens
        self.state.add_loss(outcome.loss, total_steps=self.plan.total_steps)
        self.state.grad_norms = [*self.state.grad_norms[-WINDOW:], outcome.grad_norm]
        if self.ranks.is_first:
            self._report_step(outcome, rate=rate, seconds=self.clock() - began)
        facts = StepFacts(
            step=self.state.step,
            losses=[loss for _, loss in self.state.losses],
            grad_norms=self.state.grad_norms,
            rate=rate,
            peak_rate=peak,
            memory_bytes=used_memory_bytes(self.ranks.device),
        )
        self._diagnose(self._doctor.after_step(facts))
        restored = self._recovery.after_step(self.state, outcome=outcome)
        if restored is not None:
            self._go_back(restored)

    def _keep_gradients(self, norm: float) -> None:
        """Add the gathered gradients to the sums of the run, unless fp16 leaves the step out."""
        if self.ranks.is_first and math.isfinite(norm):
            self.state.gradients = self._gradients.added(self.state.gradients, grad_norm=norm)
            self.state.num_clipped += norm > self.config.training.max_grad_norm

    def _go_back(self, restored: RunState) -> None:
        self.state = restored
        # Saved at once with what was learnt: an attempt that resumes goes on from here, instead of
        # the way that was given up.
        self.saver.saved_step = -1
        self.saver.save(self.state, cause="recovery")
        self._first_step, self._started = restored.step, self.clock()

    def _own_batches(self, sequences: Sequence[tuple[int, ...]]) -> list[Batch]:
        own = self.ranks.share_of(sequences)
        return [self._batch(group) for group in micro_batches(own, self.limit.rows)]

    def _batch(self, sequences: Sequence[tuple[int, ...]]) -> Batch:
        train = self.data.train
        train_all = self.config.training.loss_on == "all"
        if self.sequences.packing is not None:
            return collate_packed(train, sequences, pad_id=self.pad_id, train_all=train_all)
        rows = list(chain.from_iterable(sequences))
        return collate(train, rows, pad_id=self.pad_id, train_all=train_all)

    def _batch_of_row(self, row: int) -> Batch:
        return self._batch([(row,)])

    def _report_step(self, outcome: StepOutcome, *, rate: float, seconds: float) -> None:
        step, allocator = self.state.step, self.optimizer.allocator
        mean = (self.clock() - self._started) / (step - self._first_step)
        report = report_of(
            outcome,
            step=step,
            plan=self.plan,
            rate=rate,
            seconds=seconds,
            mean_seconds=mean,
            memory_bytes=used_memory_bytes(self.ranks.device),
            mean_rank=allocator.mean_rank if allocator is not None else None,
        )
        self.observer.on_step(report)
        self.observer.on_stage(STAGE_TRAINING, done=step, total=self.plan.total_steps, unit="steps")

    def _watched(self) -> tuple[str, PreparedSplit] | None:
        """The split evaluated while training."""
        name = "validation" if len(self.data.splits["validation"]) else self.data.held_out
        return (name, self.data.splits[name]) if name else None

    def _evaluate_if_due(self) -> bool:
        """False when asked to stop before the evaluation was done."""
        step, watched = self.state.step, self._watched()
        if watched is None or self.state.evaluated_step == step:
            return True
        schedule = self.config.evaluation.schedule
        if not is_due(
            schedule,
            plan=self.plan,
            step=step,
            last_step=self.state.evaluated_step,
            values=self._watched_values(self.metric) if schedule == "adaptive" else (),
        ):
            return True
        name, split = watched
        began = self.clock()
        measured = self.evaluator.measure(split, stage=STAGE_TRAINING_EVALUATION)
        if measured is None:
            return False
        self.state.evaluated_step = step
        self.saver.saved_step = -1  # what an attempt saved that was stopped before this lacks it
        self.state.evaluations.append(
            Evaluated(step=step, subject=TUNED, split=name, metrics=measured.metrics)
        )
        if self.ranks.is_first:
            self.observer.on_evaluation(
                measured.report(step=step, subject=TUNED, split=name, seconds=self.clock() - began)
            )
        self._diagnose(
            self._doctor.after_evaluation(
                measured.metrics,
                step=step,
                epochs=step / self.plan.steps_per_epoch,
                losses=[loss for _, loss in self.state.losses],
                earlier=self._watched_values(LOSS)[:-1],
            )
        )
        self._keep_if_best(measured.metrics[self.metric])
        return True

    @property
    def _judged_since(self) -> int:
        """The step from which on evaluations count: more ranks than the budget are no result."""
        allocator = self.optimizer.allocator
        return 0 if allocator is None else allocator.schedule.end

    @property
    def _is_judged(self) -> bool:
        """Whether the model as it is may be the result; ranks that are late may not have fallen."""
        allocator = self.optimizer.allocator
        return allocator is None or allocator.is_settled(self.state.step)

    def _watched_values(self, metric: str, *, since: int = 0) -> list[float]:
        """A metric at every evaluation while training, in order, from step `since` on."""
        watched = self._watched()
        return [
            done.metrics[metric]
            for done in self.state.evaluations
            if watched and done.subject == TUNED and done.split == watched[0] and done.step >= since
            if metric in done.metrics  # another one may have been watched before a resume
        ]

    def _keep_if_best(self, value: float) -> None:
        best = self.state.best_value
        if not self._is_judged:
            return
        if math.isnan(value) or (best is not None and gain(self.metric, value, over=best) <= 0):
            return
        self.state.best_value = value
        self.state.best_step = self.state.step
        self.state.best_checkpoint = self.checkpoints.name_of(
            self.state.step, recoveries=self.state.interventions
        )
        self.saver.save(self.state, cause="best")
        self.ranks.first_does(lambda: pin_best(self.checkpoints, self.state, metric=self.metric))

    def _tell_ranks(self) -> None:
        """Say where the ranks are, once they have fallen to the budget."""
        allocator = self.optimizer.allocator
        if allocator is not None:
            self._tell(
                EVENT_RANKS_SETTLED,
                f"Ranks are settled at step {self.state.step}: {describe_ranks(allocator.ranks)}",
                step=self.state.step,
                ranks=allocator.ranks,
            )

    def _diagnose(self, found: Iterator[Diagnosis]) -> None:
        for diagnosis in found:
            if diagnosis.row not in self.state.told:
                self.state.told = [*self.state.told, diagnosis.row]
                self._tell(EVENT_DIAGNOSIS, str(diagnosis), **asdict(diagnosis))

    def _tell(self, event: str, message: str, **fields: Any) -> None:
        if self.ranks.is_first:
            self.observer.on_event(event, message, fields)

    def _write_milestones(self) -> None:
        for percent in self.config.checkpoint.milestones:
            if self.plan.milestone_step(percent) == self.state.step:
                self.ranks.first_does(partial(self.on_milestone, percent, self.state))
