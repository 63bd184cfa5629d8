"""One Kubernetes Event per change of state; a Warning only where a person should act.

Events are derived from the difference of two statuses, so that a decision cannot forget one. They
are sent after the status has been written and are never waited for: an Event that is lost is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from anneal_operator.api.names import FIELD_MANAGER
from anneal_operator.api.reasons import NOBODY, REASON_DOCS, ConditionType, Reason
from anneal_operator.api.status import FineTuneJobStatus
from anneal_operator.conditions import find
from anneal_operator.leader import micro_time
from anneal_operator.observation import Job
from anneal_operator.resources import EVENTS, FINE_TUNE_JOBS

NOTE_MAX = 1024

# Running=False repeats what Provisioned or Failed says; Succeeded=False what Failed says.
_TOLD = {
    ConditionType.ACCEPTED: ("True", "False"),
    ConditionType.QUEUED: ("True",),
    ConditionType.PROVISIONED: ("False",),
    ConditionType.RUNNING: ("True",),
    ConditionType.REGISTERED: ("True",),
    ConditionType.SUSPENDED: ("True", "False"),
    ConditionType.SUCCEEDED: ("True",),
    ConditionType.FAILED: ("True",),
}

_NEEDS_A_PERSON = {
    str(reason)
    for reason, doc in REASON_DOCS.items()
    # Somebody who suspends a job knows it.
    if doc.who != NOBODY and reason is not Reason.SUSPENDED
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What an Event says."""

    reason: str
    message: str
    warning: bool


def notes(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Note]:
    """What has changed between two statuses, in words."""
    known = {attempt.number: attempt for attempt in before.attempts}
    for attempt in after.attempts:
        old = known.get(attempt.number)
        if attempt.ended is not None and (old is None or old.ended is None):
            yield Note(
                reason="AttemptEnded",
                message=f"Attempt {attempt.number} ended ({attempt.attempt_class}, "
                f"{attempt.reason}): {attempt.message}",
                warning=attempt.attempt_class in ("User", "Infrastructure", "Deadline"),
            )
    for condition in after.conditions:
        if condition.status not in _TOLD.get(condition.type, ()):
            continue
        was = find(before.conditions, condition.type)
        if was is None or (was.status, was.reason) != (condition.status, condition.reason):
            yield Note(
                reason=condition.reason,
                message=condition.message,
                warning=_needs_a_person(condition.type, condition.reason),
            )


def _needs_a_person(kind: ConditionType, reason: str) -> bool:
    if kind is ConditionType.FAILED:
        return True
    return reason in _NEEDS_A_PERSON


def event(note: Note, *, job: Job, instance: str, now: datetime) -> dict[str, Any]:
    """The Event object. Its name is made from what it says, so a repeat is no second one."""
    said = f"{job.uid} {note.reason} {note.message} {job.resource_version}"
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"name": f"{job.name[:200]}.{digest}", "namespace": job.namespace},
        "eventTime": micro_time(now),
        "reportingController": f"anneal.dev/{FIELD_MANAGER}",
        "reportingInstance": instance[:128],
        "action": "Reconcile",
        "reason": note.reason,
        "note": note.message[:NOTE_MAX],
        "type": "Warning" if note.warning else "Normal",
        "regarding": {
            "apiVersion": FINE_TUNE_JOBS.api_version,
            "kind": FINE_TUNE_JOBS.kind,
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        },
    }
