"""What a step tells the observer."""

from __future__ import annotations

from anneal_pipeline.config.steps import StepPlan
from anneal_pipeline.observer import StepReport
from anneal_pipeline.training.optimizer import StepOutcome


def report_of(
    outcome: StepOutcome,
    *,
    step: int,
    plan: StepPlan,
    rate: float,
    seconds: float,
    mean_seconds: float,
    memory_bytes: int,
    mean_rank: float | None,
) -> StepReport:
    """The report of step `step`, counted from 1, which took `seconds`."""
    return StepReport(
        step=step,
        total_steps=plan.total_steps,
        epoch=step / plan.steps_per_epoch,
        loss=outcome.loss,
        learning_rate=rate,
        grad_norm=outcome.grad_norm,
        num_tokens=outcome.num_tokens,
        num_trained_tokens=outcome.num_trained_tokens,
        step_seconds=seconds,
        tokens_per_second=outcome.num_tokens / max(seconds, 1e-9),
        eta_seconds=mean_seconds * (plan.total_steps - step),
        memory_bytes=memory_bytes,
        mean_rank=mean_rank,
    )
