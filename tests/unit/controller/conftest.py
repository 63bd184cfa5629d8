"""Builders of what the operator sees. Everything has a default; a test names what it is about."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from anneal_operator.api.names import attempt_name
from anneal_operator.api.outcome import Outcome
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.progress import ProgressReport
from anneal_operator.api.reasons import ConditionType
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.status import FineTuneJobStatus
from anneal_operator.conditions import find
from anneal_operator.draft import Plan
from anneal_operator.observation import (
    Child,
    Input,
    Job,
    Pod,
    Profile,
    Report,
    Run,
    Termination,
    Tracking,
)
from anneal_operator.plan import plan

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
UID = "1f2e3d4c-0000-4000-8000-000000000000"
DIGEST = "sha256:" + "a" * 64
MLFLOW = "http://mlflow.anneal:5000"
RUN = Run(run_id="3f9c" * 8, experiment_id="1", url=f"{MLFLOW}/#/experiments/1/runs/3f9c")
JOB = Job(
    namespace="team-a",
    name="support-bot",
    uid=UID,
    generation=1,
    created=NOW - timedelta(minutes=1),
    resource_version="100",
)


def spec(**fields: Any) -> FineTuneJobSpec:
    """The smallest job of the documentation, with more fields."""
    smallest = {
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "0" * 40},
        "dataset": {"uri": "s3://team-data/support.jsonl"},
    }
    return FineTuneJobSpec.parse({**smallest, **fields})


def profile_spec(**fields: Any) -> FineTuneProfileSpec:
    """A profile that lets the smallest job pass."""
    usual = {
        "images": {"trainer": "registry.example/anneal-trainer:1"},
        "storage": {"outputURI": "s3://models", "allowedReadURIs": ["s3://team-data"]},
        "models": {"allowedURIs": ["hf://HuggingFaceTB"]},
        "tracking": {"uri": MLFLOW},
    }
    return FineTuneProfileSpec.parse({**usual, **fields})


def profile(**fields: Any) -> Profile:
    return Profile(name="default", generation=3, spec=profile_spec(**fields))


def seen(**fields: Any) -> Input:
    """What is seen of a job that was just created."""
    usual: dict[str, Any] = {
        "now": NOW,
        "job": JOB,
        "spec": spec(),
        "status": FineTuneJobStatus(),
        "profile": profile(),
        "known_tracking_uris": (MLFLOW,),
        "tracking": Tracking(run=RUN),
        "serving_since": NOW - timedelta(days=1),
    }
    return Input(**{**usual, **fields})


def child(number: int = 1, **fields: Any) -> Child:
    return Child(name=attempt_name(JOB.name, UID, number), uid=f"child-{number}", **fields)


def pod(number: int = 1, **fields: Any) -> Pod:
    usual: dict[str, Any] = {
        "name": f"pod-{number}",
        "uid": f"pod-uid-{number}",
        "attempt": str(number),
        "phase": "Running",
        "node": "node-1",
        "started": NOW - timedelta(seconds=30),
    }
    return Pod(**{**usual, **fields})


def ended_pod(number: int = 1, *, code: int, outcome: Outcome | None = None, **fields: Any) -> Pod:
    termination = Termination(
        exit_code=code, reason=fields.pop("container_reason", ""), outcome=outcome, finished=NOW
    )
    phase = "Succeeded" if code == 0 else "Failed"
    return pod(number, phase=phase, termination=termination, **fields)


def outcome(kind: str, **fields: Any) -> Outcome:
    done = {"artefactDigest": DIGEST, "modelVersion": "support-bot/4"} if kind == "Done" else {}
    told = {"class": kind, "reason": f"Test{kind}", "message": f"It ended as {kind}."}
    return Outcome.parse({**told, **done, **fields})


def report(*, worked_at: datetime = NOW, attempt: int = 1, **anneal: Any) -> Report:
    body = {
        "trainerStatus": {
            "progressPercentage": 42,
            "estimatedRemainingSeconds": 360,
            "lastUpdatedTime": "2026-11-21T12:00:00Z",
        },
        "anneal": {"attempt": attempt, **anneal},
    }
    return Report(body=ProgressReport.parse(body), worked_at=worked_at)


def after(*steps: Any, start: Input | None = None) -> Input:
    """Play several observations in a row, each a dict of what is then seen; the last Input.

    The status that one decision made is what the next one starts from.
    """
    current = start or seen()
    for step in steps:
        current = replace(current, status=plan(current).status)
        current = replace(current, **step)
    return current


def running(**fields: Any) -> Input:
    """A job whose first attempt runs."""
    return after({"child": child(), "pods": (pod(),)}, {}, start=seen(**fields))


def condition(decided: Plan, kind: ConditionType) -> tuple[str, str] | None:
    """Status and reason of a condition."""
    found = find(decided.status.conditions, kind)
    return None if found is None else (found.status, found.reason)
