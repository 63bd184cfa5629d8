"""What a step tells the observer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from anneal_pipeline.config.steps import StepPlan
from anneal_pipeline.device import used_memory_bytes
from anneal_pipeline.observer import STAGE_TRAINING, Observer, StepReport
from anneal_pipeline.training.diagnoses.facts import StepSeconds
from anneal_pipeline.training.optimizer import StepOutcome
from anneal_pipeline.training.rank_allocator import RankAllocator
from anneal_pipeline.training.ranks import Ranks


@dataclass(kw_only=True)
class StepReporter:
    """Tells of each step, and how long the rest takes at the mean pace since `begin`."""

    plan: StepPlan
    allocator: RankAllocator | None
    observer: Observer
    ranks: Ranks
    clock: Callable[[], float]
    _began: float = field(init=False)
    _first_step: int = field(init=False)

    def begin(self, step: int) -> None:
        """Steps are taken from here on, `step` of them done."""
        self._began, self._first_step = self.clock(), step

    def tell(self, outcome: StepOutcome, *, step: int, rate: float, seconds: StepSeconds) -> None:
        """The report of step `step`, counted from 1, which took `seconds`; of the first rank."""
        if not self.ranks.is_first:
            return
        plan, allocator = self.plan, self.allocator
        mean_seconds = (self.clock() - self._began) / (step - self._first_step)
        report = StepReport(
            step=step,
            total_steps=plan.total_steps,
            epoch=step / plan.steps_per_epoch,
            loss=outcome.loss,
            learning_rate=rate,
            grad_norm=outcome.grad_norm,
            num_tokens=outcome.num_tokens,
            num_trained_tokens=0 if outcome.has_overflowed else outcome.num_trained_tokens,
            step_seconds=seconds.total,
            data_seconds=seconds.data,
            gradient_seconds=seconds.gradients,
            update_seconds=seconds.update,
            tokens_per_second=outcome.num_tokens / max(seconds.total, 1e-9),
            eta_seconds=mean_seconds * (plan.total_steps - step),
            memory_bytes=used_memory_bytes(self.ranks.device),
            mean_rank=allocator.mean_rank if allocator is not None else None,
        )
        self.observer.on_step(report)
        self.observer.on_stage(STAGE_TRAINING, done=step, total=plan.total_steps, unit="steps")
