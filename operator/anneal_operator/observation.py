"""What the operator sees of one job, as frozen values: the only thing that decisions are made from.

Everything here is read from plain dicts of the API server and from the operator's own memory
(progress reports, answers of MLflow). Nothing in this module performs I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from anneal_operator.api.names import TRAINER_CONTAINER
from anneal_operator.api.outcome import Outcome
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.progress import ProgressReport
from anneal_operator.api.reasons import Reason
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.status import FineTuneJobStatus
from anneal_operator.clock import parse_time
from anneal_pipeline.config.schema import ConfigError

Object = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Termination:
    """How the trainer's container ended."""

    exit_code: int
    reason: str
    outcome: Outcome | None
    finished: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod of a job, as far as decisions need it."""

    name: str
    uid: str
    attempt: str
    phase: str
    node: str | None = None
    started: datetime | None = None
    termination: Termination | None = None
    waiting_reason: str = ""
    waiting_message: str = ""
    unschedulable: str = ""
    """The scheduler's message, while it finds no node."""
    disruption: str = ""
    """Reason of the DisruptionTarget condition."""
    status_reason: str = ""
    status_message: str = ""

    @property
    def over(self) -> bool:
        """No process of it runs any more."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """The batch/v1 Job of one attempt."""

    name: str
    uid: str
    result: str = ""
    """Complete or Failed, once the Job is over."""
    reason: str = ""
    message: str = ""
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The FineTuneProfile that the job names."""

    name: str
    generation: int
    spec: FineTuneProfileSpec | ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The job's MLflow run."""

    run_id: str
    experiment_id: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """What MLflow has answered so far about this job."""

    run: Run | None = None
    closed: str | None = None
    """The status the run was closed with."""
    digest: str | None = None
    """Digest tag on the registered version; empty if there is no such version or tag."""
    error: str | None = None
    """Why the last call failed; None after a success."""
    fault: Literal["Silent", "Denied", "Rejected"] = "Silent"
    """Of a failure: no sensible answer, the operator refused, or the user's own words refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the last try to make the attempt's child came to nothing."""

    reason: Reason
    message: str
    is_config_missing: bool = False
    """The stored config is not there, and this operator would write it otherwise than recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The newest progress report of the current attempt."""

    body: ProgressReport
    worked_at: datetime
    """When a report last brought work that was not in the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Identity of the FineTuneJob."""

    namespace: str
    name: str
    uid: str
    generation: int
    created: datetime
    resource_version: str
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """Everything that a decision about one job depends on."""

    now: datetime
    job: Job
    spec: FineTuneJobSpec | ConfigError
    status: FineTuneJobStatus
    profile: Profile | None
    known_tracking_uris: tuple[str, ...]
    release: str = ""
    """Identity of the installation that this operator belongs to."""
    child: Child | None = None
    """Child of the current attempt."""
    pods: tuple[Pod, ...] = ()
    """All pods of the job, of every attempt."""
    report: Report | None = None
    tracking: Tracking = field(default_factory=Tracking)
    serving_since: datetime | None = None
    """Since when this leader takes progress reports; the stall clock starts no earlier."""
    hint: str = ""
    """The newest Warning event about a child or pod that does not get going."""
    refusal: Refusal | None = None
    """Only while there is no child."""

    def pod_of(self, attempt: int) -> Pod | None:
        """The newest pod of an attempt."""
        mine = [pod for pod in self.pods if pod.attempt == str(attempt)]
        return mine[-1] if mine else None

    @property
    def pods_running(self) -> bool:
        """Some pod of the job may still write to the stores."""
        return any(not pod.over for pod in self.pods)


def read_child(obj: Object) -> Child:
    """Read a batch/v1 Job."""
    meta, status = obj["metadata"], obj.get("status") or {}
    ended: Object = next(
        (
            c
            for c in status.get("conditions") or ()
            if c.get("type") in ("Complete", "Failed") and c.get("status") == "True"
        ),
        {},
    )
    return Child(
        name=str(meta["name"]),
        uid=str(meta["uid"]),
        result=str(ended.get("type") or ""),
        reason=str(ended.get("reason") or ""),
        message=str(ended.get("message") or ""),
        deleting="deletionTimestamp" in meta,
    )


def read_pod(obj: Object, *, attempt_label: str) -> Pod:
    """Read a v1 Pod."""
    meta, status = obj["metadata"], obj.get("status") or {}
    container: Object = next(
        (c for c in status.get("containerStatuses") or () if c.get("name") == TRAINER_CONTAINER),
        {},
    )
    state = container.get("state") or {}
    running, ended = state.get("running") or {}, state.get("terminated") or {}
    waiting = state.get("waiting") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled") or {}
    disrupted = conditions.get("DisruptionTarget") or {}
    return Pod(
        name=str(meta["name"]),
        uid=str(meta["uid"]),
        attempt=str((meta.get("labels") or {}).get(attempt_label) or ""),
        phase=str(status.get("phase") or "Pending"),
        node=(obj.get("spec") or {}).get("nodeName"),
        started=parse_time(running.get("startedAt") or ended.get("startedAt")),
        termination=_read_termination(ended) if ended else None,
        waiting_reason=str(waiting.get("reason") or ""),
        waiting_message=str(waiting.get("message") or ""),
        unschedulable=(
            str(scheduled.get("message") or "no node fits")
            if scheduled.get("status") == "False"
            else ""
        ),
        disruption=(
            str(disrupted.get("reason") or "Unknown") if disrupted.get("status") == "True" else ""
        ),
        status_reason=str(status.get("reason") or ""),
        status_message=str(status.get("message") or ""),
    )


def _read_termination(ended: Object) -> Termination:
    return Termination(
        exit_code=int(ended.get("exitCode") or 0),
        reason=str(ended.get("reason") or ""),
        outcome=read_outcome(str(ended.get("message") or "")),
        finished=parse_time(ended.get("finishedAt")),
    )


def read_outcome(text: str) -> Outcome | None:
    """Read an outcome from a termination log; anything else in there is not one."""
    try:
        return Outcome.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValueError:
        return None
