"""metav1 conditions, the phase that is printed, and the ready strings of the columns. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from anneal_operator.api.condition import Condition
from anneal_operator.api.reasons import ConditionType, Phase, Reason
from anneal_operator.api.status import Display, FineTuneJobStatus

Truth = Literal["True", "False", "Unknown"]
Conditions = tuple[Condition, ...]

MESSAGE_MAX = 4096
_ORDER = {kind: number for number, kind in enumerate(ConditionType)}


def find(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    """The condition of that type."""
    return next((c for c in conditions if c.type == kind), None)


def holds(conditions: Iterable[Condition], kind: ConditionType) -> bool:
    """Whether the condition of that type is True."""
    found = find(conditions, kind)
    return found is not None and found.status == "True"


def with_condition(
    conditions: Conditions,
    kind: ConditionType,
    truth: Truth,
    *,
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> Conditions:
    """Set one condition; its transition time moves only when its status does."""
    old = find(conditions, kind)
    since = old.last_transition_time if old and old.status == truth else now
    new = Condition(
        type=kind,
        status=truth,
        reason=reason,
        message=message[:MESSAGE_MAX],
        last_transition_time=since,
        observed_generation=generation,
    )
    others = [c for c in conditions if c.type != kind]
    return tuple(sorted([*others, new], key=lambda c: _ORDER[c.type]))


def finished(status: FineTuneJobStatus) -> bool:
    """The job has succeeded or failed: nothing may ever be created for it again."""
    return holds(status.conditions, ConditionType.SUCCEEDED) or holds(
        status.conditions, ConditionType.FAILED
    )


def phase_of(status: FineTuneJobStatus) -> Phase:
    """The summary that is printed. Nothing is decided by it."""
    conditions = status.conditions
    suspended = find(conditions, ConditionType.SUSPENDED)
    accepted = find(conditions, ConditionType.ACCEPTED)
    if holds(conditions, ConditionType.SUCCEEDED):
        return Phase.SUCCEEDED
    if holds(conditions, ConditionType.FAILED):
        return Phase.FAILED
    if accepted is not None and accepted.status == "False":
        return Phase.REJECTED
    if suspended is not None and suspended.status == "True":
        return Phase.SUSPENDED
    if suspended is not None and suspended.reason == Reason.SUSPEND_REQUESTED:
        return Phase.SUSPENDING
    if holds(conditions, ConditionType.QUEUED):
        return Phase.QUEUED
    is_trained = bool(status.attempts) and status.attempts[-1].attempt_class == "Done"
    if is_trained or holds(conditions, ConditionType.RUNNING):
        # Trained and not yet succeeded: the registry is being asked whether it agrees.
        return Phase.RUNNING
    running = find(conditions, ConditionType.RUNNING)
    if running is not None and running.reason == Reason.BACKING_OFF:
        return Phase.RETRYING
    return Phase.STARTING if status.attempt else Phase.PENDING


def display_of(status: FineTuneJobStatus, *, model_uri: str | None) -> Display:
    """The strings of the printed columns."""
    progress = status.progress
    steps = None
    if progress is not None and progress.step is not None:
        steps = f"{progress.step}/{progress.total_steps or '?'}"
    run_id = status.mlflow.run_id if status.mlflow else None
    return Display(
        progress=_percent(status),
        step=steps,
        loss=None if progress is None or progress.loss is None else f"{progress.loss:.4g}"[:16],
        eta=_eta(status),
        model=model_uri.rstrip("/").rsplit("/", 1)[-1][:128] if model_uri else None,
        run=run_id[:8] if run_id else None,
        reason=_reason(status),
    )


def _percent(status: FineTuneJobStatus) -> str | None:
    if holds(status.conditions, ConditionType.SUCCEEDED):
        return "100%"
    percent = status.progress.percent if status.progress else None
    return None if percent is None else f"{percent}%"


def _eta(status: FineTuneJobStatus) -> str | None:
    if finished(status) or status.progress is None or status.progress.eta_seconds is None:
        return None
    seconds = status.progress.eta_seconds
    if seconds < 60:
        return f"{seconds}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def _reason(status: FineTuneJobStatus) -> str | None:
    """Why it waits or why it ended: the reason of the condition that speaks for the phase."""
    conditions = status.conditions
    for kind, truth in (
        (ConditionType.FAILED, "True"),
        (ConditionType.SUCCEEDED, "True"),
        (ConditionType.ACCEPTED, "False"),
        (ConditionType.SUSPENDED, "True"),
        (ConditionType.QUEUED, "True"),
        (ConditionType.RUNNING, "True"),
        (ConditionType.PROVISIONED, "False"),
        (ConditionType.RUNNING, "False"),
    ):
        found = find(conditions, kind)
        if found is not None and found.status == truth:
            return found.reason
    return None
