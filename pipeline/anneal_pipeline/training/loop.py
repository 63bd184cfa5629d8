"""The training loop: from wherever the run stands to its last step, or to a planned stop.

At every step boundary, in this order: evaluate if due, save if due, end or stop if asked, take a
step. What has been done at a boundary is in the state, so a run that resumes there does only the
rest. Evaluating is for `held_out`, what follows from it for `best` and `early_stopping`, what goes
wrong within a step for `out_of_memory` and `recovery`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import StepPlan
from anneal_pipeline.device import used_memory_bytes
from anneal_pipeline.efficiency.adapters import list_adapters
from anneal_pipeline.efficiency.gradients import GradientWatch
from anneal_pipeline.evaluation.perplexity import LOSS
from anneal_pipeline.model.loading import TunedModel
from anneal_pipeline.observer import EVENT_RANKS_SETTLED, Observer
from anneal_pipeline.training.batches import Batch, Collator, micro_batches
from anneal_pipeline.training.best import BestCheckpoint
from anneal_pipeline.training.diagnoses.diagnostician import Diagnostician, make_diagnostician
from anneal_pipeline.training.diagnoses.facts import Planned, StepFacts
from anneal_pipeline.training.diagnoses.held_out import of_evaluation
from anneal_pipeline.training.early_stopping import EarlyStopping
from anneal_pipeline.training.events import Events
from anneal_pipeline.training.held_out import HeldOutWatch
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.memory import MemoryRanOutError, RowLimit
from anneal_pipeline.training.optimizer import AdapterOptimizer, StepOutcome
from anneal_pipeline.training.out_of_memory import MicroBatchHalving
from anneal_pipeline.training.randomness import seed_step
from anneal_pipeline.training.rank_allocator import describe_ranks
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.recovery import Recovery
from anneal_pipeline.training.runaway import WINDOW
from anneal_pipeline.training.saver import Saver
from anneal_pipeline.training.schedule import learning_rate
from anneal_pipeline.training.sequences import StepSequences
from anneal_pipeline.training.state import RunState
from anneal_pipeline.training.step_clock import StepClock
from anneal_pipeline.training.step_report import StepReporter


@dataclass(kw_only=True)
class Trainer:
    config: PipelineConfig
    plan: StepPlan
    tuned: TunedModel
    path: LogitsPath
    optimizer: AdapterOptimizer
    limit: RowLimit
    """Sequences per forward pass of a training step."""
    sequences: StepSequences
    collate: Collator
    state: RunState
    saver: Saver
    watch: HeldOutWatch
    best: BestCheckpoint
    early_stopping: EarlyStopping | None
    halving: MicroBatchHalving
    recovery: Recovery
    planned: Planned | None
    reporter: StepReporter
    on_milestone: Callable[[int, RunState], None]
    """Called on the first rank with the percentage reached."""
    observer: Observer
    events: Events
    ranks: Ranks
    clock: Callable[[], float]
    _doctor: Diagnostician = field(init=False)
    _gradients: GradientWatch = field(init=False)
    _times: StepClock = field(init=False)

    def __post_init__(self) -> None:
        self.limit.rows = min(self.limit.rows, self.state.micro_batch_size or self.limit.rows)
        self._times = StepClock(clock=self.clock)
        self._doctor = make_diagnostician(
            self.config, tuned=self.tuned, planned=self.planned, ranks=self.ranks
        )
        self._gradients = GradientWatch(
            list_adapters(self.tuned.model), max_norm=self.config.training.max_grad_norm
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
                if self.early_stopping is not None and self.early_stopping.config.restore_best:
                    self.best.take_up(self.state)
                return True
            if self.state.step and self.state.step % self.plan.checkpoint_steps == 0:
                self.saver.save(self.state, cause="interval")
            self._step()
            self._write_milestones()

    def _begin(self) -> None:
        if self.early_stopping is not None:
            self.early_stopping.warn_if_idle()
        self.events.diagnose(self._doctor.of_batch(), state=self.state)
        self.reporter.begin(self.state.step)
        self.tuned.model.train()
        if self.saver.last_checkpoint is None:
            batches = self._own_batches(self.sequences.of_step(0))
            found = self._doctor.of_beginning(self.tuned.model, self.path, batches)
            self.events.diagnose(found, state=self.state)
            self.saver.save_initial(self.state)
            return
        self.saver.saved_step = self.state.step
        if self.ranks.is_first:
            self.best.pin(self.state)

    def _evaluate_if_due(self) -> bool:
        """False when asked to stop before the evaluation was done."""
        state = self.state
        if not self.watch.is_due(state):
            return True
        metrics = self.watch.measure(state)
        if metrics is None:
            return False
        self.saver.saved_step = -1  # what an attempt saved that was stopped before this lacks it
        self.events.diagnose(
            of_evaluation(
                metrics,
                step=state.step,
                epochs=state.step / self.plan.steps_per_epoch,
                losses=[loss for _, loss in state.losses],
                earlier=self.watch.values(LOSS, state=state)[:-1],
            ),
            state=state,
        )
        self.best.keep_if_better(state, metrics)
        return True

    def _is_over(self) -> bool:
        if self.state.step >= self.plan.total_steps:
            return True
        return self.early_stopping is not None and self.early_stopping.is_time(self.state)

    def _step(self) -> None:
        step = self.state.step
        self._times.begin()
        while True:
            sequences = self.sequences.of_step(step, without=frozenset(self.state.skipped_rows))
            outcome = self._gather(step, sequences)
            if outcome.is_finite:
                break
            self.optimizer.take_back()
            rows = list(chain.from_iterable(sequences))
            restored = self.recovery.after_non_finite(self.state, rows=rows, outcome=outcome)
            self._times.count("gradients")
            if restored is not None:
                return self._go_back(restored)
        if outcome.num_trained_tokens:
            self._take(outcome)
        elif self.recovery.pass_over(self.state, num_sequences=len(sequences)):
            self._tell_ranks()

    def _gather(self, step: int, sequences: Sequence[tuple[int, ...]]) -> StepOutcome:
        """The gradients of the step, with as many sequences at once as memory holds."""
        while True:
            seed_step(self.config.training.seed, rank=self.ranks.rank, step=step)
            batches = self._own_batches(sequences)
            self._times.count("data")
            try:
                return self.optimizer.gather(self.path, batches)
            except MemoryRanOutError:
                self.halving.lower(self.state, sequences=sequences)
            finally:
                self._times.count("gradients")

    def _take(self, outcome: StepOutcome) -> None:
        """Apply the gradients and look at what came of it."""
        peak = self.recovery.rate(self.state)
        rate = learning_rate(self.config.training, plan=self.plan, step=self.state.step, peak=peak)
        self._keep_gradients(outcome.grad_norm)
        self.state.step += 1
        if self.optimizer.apply(rate, step=self.state.step):
            self._tell_ranks()
        self.state.add_loss(outcome.loss, total_steps=self.plan.total_steps)
        if outcome.has_overflowed:
            self.recovery.after_overflow(self.state)
        else:
            self.state.num_trained_tokens += outcome.num_trained_tokens
            self.state.grad_norms = [*self.state.grad_norms[-WINDOW:], outcome.grad_norm]
        self._times.count("update")
        seconds = self._times.seconds()
        self.reporter.tell(outcome, step=self.state.step, rate=rate, seconds=seconds)
        facts = StepFacts(
            step=self.state.step,
            losses=[loss for _, loss in self.state.losses],
            grad_norms=self.state.grad_norms,
            overflows=self.state.overflows,
            rate=rate,
            peak_rate=peak,
            memory_bytes=used_memory_bytes(self.ranks.device),
            num_tokens=outcome.num_tokens,
            seconds=seconds,
        )
        self.events.diagnose(self._doctor.after_step(facts), state=self.state)
        restored = self.recovery.after_step(self.state, outcome=outcome)
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
        self.reporter.begin(restored.step)

    def _own_batches(self, sequences: Sequence[tuple[int, ...]]) -> list[Batch]:
        own = self.ranks.share_of(sequences)
        return [self.collate(group) for group in micro_batches(own, self.limit.rows)]

    def _tell_ranks(self) -> None:
        """Say where the ranks are, once they have fallen to the budget."""
        allocator = self.optimizer.allocator
        if allocator is not None:
            self.events.tell(
                EVENT_RANKS_SETTLED,
                f"Ranks are settled at step {self.state.step}: {describe_ranks(allocator.ranks)}",
                step=self.state.step,
                ranks=allocator.ranks,
            )

    def _write_milestones(self) -> None:
        for percent in self.config.checkpoint.milestones:
            if self.plan.milestone_step(percent) == self.state.step:
                self.ranks.first_does(partial(self.on_milestone, percent, self.state))
