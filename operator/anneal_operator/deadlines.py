"""The three clocks of a job: pending, active over all attempts, and silence. Pure."""

from __future__ import annotations

from datetime import datetime

from anneal_operator.api.reasons import ConditionType, Reason
from anneal_operator.api.status import Attempt
from anneal_operator.case import Case
from anneal_operator.conditions import find


def passed_deadline(case: Case, attempt: Attempt | None) -> tuple[Reason, str] | None:
    """The deadline that has passed, if any; else come back when the next one does."""
    status, now, deadlines = case.draft.status, case.seen.now, case.spec.deadlines
    if status.start_time is None and deadlines.pending_seconds is not None:
        waited = (now - _pending_since(case)).total_seconds()
        if waited >= deadlines.pending_seconds:
            return Reason.PENDING_DEADLINE, (
                f"No pod ran within {deadlines.pending_seconds} s "
                f"(deadlines.pendingSeconds){_last_wait(case)}"
            )
        case.draft.look_again(deadlines.pending_seconds - waited)
    limits = (deadlines.active_seconds, case.profile.limits.active_seconds)
    limit = min((x for x in limits if x is not None), default=None)
    if limit is not None:
        running = attempt is not None and attempt.ended is None and attempt.started is not None
        active = status.active_seconds
        if running and attempt is not None and attempt.started is not None:
            active += (now - attempt.started).total_seconds()
        if active >= limit:
            return Reason.ACTIVE_DEADLINE, (
                f"The attempts together ran {int(active)} s, and deadlines.activeSeconds "
                f"allows {limit}; raise the deadline or train fewer steps. Checkpoints and "
                "logs are kept."
            )
        if running:
            case.draft.look_again(limit - active)
    return None


def _pending_since(case: Case) -> datetime:
    """Since acceptance, or since the end of a suspension."""
    since = case.seen.job.created
    for kind in (ConditionType.ACCEPTED, ConditionType.SUSPENDED):
        found = find(case.draft.status.conditions, kind)
        if found is not None:
            since = max(since, found.last_transition_time)
    return since


def _last_wait(case: Case) -> str:
    found = find(case.draft.status.conditions, ConditionType.PROVISIONED)
    return f"; it waited for: {found.message}" if found else "."


def silent_seconds(case: Case, attempt: Attempt) -> float | None:
    """Seconds without work, counted only while a leader listens to a running trainer."""
    if attempt.started is None or case.seen.serving_since is None:
        return None
    if attempt.outcome is not None:
        return None
    since = max(attempt.started, case.seen.serving_since)
    if case.seen.report is not None:
        since = max(since, case.seen.report.worked_at)
    return (case.seen.now - since).total_seconds()
