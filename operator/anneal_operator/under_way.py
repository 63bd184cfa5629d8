"""Decisions about an attempt that has not ended: create, watch, stop. Pure."""

from __future__ import annotations

from anneal_operator import attempts
from anneal_operator.api.reasons import ConditionType, Reason
from anneal_operator.api.status import Attempt
from anneal_operator.case import Case
from anneal_operator.deadlines import passed_deadline, silent_seconds
from anneal_operator.draft import CreateChild, StopChild

WAITING_SECONDS = 15.0
"""How often a job is looked at again while it waits for something that sends no event."""


def is_over(case: Case, attempt: Attempt) -> bool:
    """Every pod of it is gone or over, and its child will make no other."""
    seen = case.seen
    if seen.pods_running:
        return False
    if seen.child is None:
        # Never created counts as not begun, unless it was on its way out.
        was_there = attempt.child_uid is not None or attempt.pod is not None
        return was_there or attempt.attempt_class is not None
    return bool(seen.child.result) and not seen.child.deleting


def alive(case: Case, attempt: Attempt) -> None:
    if attempt.attempt_class is None:
        _maybe_stop(case, attempt)
    attempt = case.draft.attempt or attempt
    if attempt.attempt_class is not None:
        _stopping(case, attempt)
        return
    if case.seen.child is None:
        if case.draft.status.mlflow is None and not case.run_known():
            return
        case.record_config()
        case.say_waiting()
        case.draft.actions.append(CreateChild(attempt.number))
        return
    pod = case.seen.pod_of(attempt.number)
    if pod is None or pod.started is None:
        case.say_waiting()
        case.draft.look_again(WAITING_SECONDS)
        return
    _running(case, pod_name=pod.name, node=pod.node, attempt=attempt)


def _maybe_stop(case: Case, attempt: Attempt) -> None:
    if case.spec.suspend:
        attempts.mark_stopping(
            case.draft,
            "Suspension",
            reason=Reason.SUSPEND_REQUESTED,
            message="The job was suspended.",
        )
        return
    late = passed_deadline(case, attempt)
    if late is not None:
        reason, message = late
        attempts.mark_stopping(case.draft, "Deadline", reason=reason, message=message)
        return
    silent = silent_seconds(case, attempt)
    limit = case.spec.deadlines.stall_seconds
    if silent is None:
        return
    if silent < limit:
        case.draft.look_again(limit - silent)
        return
    attempts.mark_stopping(
        case.draft,
        "Infrastructure",
        reason=Reason.STALLED,
        message=f"The trainer reported no work for {int(silent)} s "
        f"(deadlines.stallSeconds is {limit}) and counts as hung.",
    )


def _stopping(case: Case, attempt: Attempt) -> None:
    child = case.seen.child
    if child is not None and not child.deleting:
        case.draft.actions.append(StopChild(child))
    if attempt.attempt_class == "Suspension":
        case.draft.condition(
            ConditionType.SUSPENDED,
            "False",
            reason=Reason.SUSPEND_REQUESTED,
            message="The trainer has been asked to stop"
            + ("" if case.spec.checkpoint.resume == "Never" else " after saving a checkpoint")
            + "; the GPUs are free when its pod is gone.",
        )
    case.draft.look_again(WAITING_SECONDS)


def _running(case: Case, *, pod_name: str, node: str | None, attempt: Attempt) -> None:
    where = f"pod {pod_name} on node {node}" if node else f"pod {pod_name}"
    case.provisioned(
        "True", reason=Reason.RUNNING, message=f"Attempt {attempt.number} has {where}."
    )
    resumed = (
        f", resumed from step {attempt.resumed_from_step}"
        if attempt.resumed_from_step is not None
        else ""
    )
    case.draft.condition(
        ConditionType.RUNNING,
        "True",
        reason=Reason.RUNNING,
        message=f"Attempt {attempt.number} runs in {where}{resumed}.",
    )
