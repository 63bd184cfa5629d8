"""FineTuneJob.status: how far, how good, why not.

Small and slow-changing on purpose: it lives in etcd. Lists are bounded and no per-step data is kept
(kubernetes/community api-conventions.md).
"""

from datetime import datetime
from typing import Literal

from pydantic import Field

from anneal_operator.api.condition import LIST_MAP, Condition
from anneal_operator.api.outcome import Outcome
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.reasons import Phase
from anneal_pipeline.config.schema import Schema

ATTEMPTS_KEPT = 10


class Attempt(Schema):
    """One launch of the job: one child object, one set of pods."""

    number: int = Field(ge=1)
    """Counted from 1 over the whole life of the job."""
    child: str = Field(max_length=63)
    """Name of the child object; recorded before the object is created."""
    child_uid: str | None = Field(default=None, max_length=63)
    """UID of the child object, once it was seen: from then on it is not created again."""
    pod: str | None = Field(default=None, max_length=253)
    """Name of the pod."""
    node: str | None = Field(default=None, max_length=253)
    """Node the pod ran on."""
    started: datetime | None = None
    """When the trainer's container started."""
    ended: datetime | None = None
    """When all pods of the attempt were gone or finished."""
    attempt_class: (
        Literal["Done", "User", "Preemption", "Infrastructure", "Suspension", "Deadline"] | None
    ) = Field(default=None, alias="class")
    """Who is to blame, once it ended; decides the retry budget."""
    reason: str | None = Field(default=None, max_length=64)
    """Why it ended."""
    message: str | None = Field(default=None, max_length=1024)
    """The cause in a sentence."""
    exit_code: int | None = None
    """Exit code of the trainer, where one was seen."""
    resumed_from_step: int | None = Field(default=None, ge=0)
    """Optimiser step of the checkpoint it went on from."""
    last_step: int | None = Field(default=None, ge=0)
    """Last optimiser step it reported."""
    outcome: Outcome | None = None
    """What the trainer itself said at its end."""


class Spent(Schema):
    """Retries spent, by failure class. Counted apart from the bounded list of attempts."""

    infrastructure: int = Field(default=0, ge=0)
    preemption: int = Field(default=0, ge=0)
    user: int = Field(default=0, ge=0)
    interruptions_without_checkpoint: int = Field(default=0, ge=0)
    """Interruptions in a row that brought no newer checkpoint."""


class Progress(Schema):
    """How far the current attempt is."""

    percent: int | None = Field(default=None, ge=0, le=100)
    stage: str | None = Field(default=None, max_length=32)
    """prepare, load, train, evaluate, export, upload or register."""
    step: int | None = Field(default=None, ge=0)
    total_steps: int | None = Field(default=None, ge=0)
    loss: float | None = None
    eta_seconds: int | None = Field(default=None, ge=0)
    heartbeat: datetime | None = None
    """When work was last reported."""


class Display(Schema):
    """Ready strings for the printed columns."""

    progress: str | None = Field(default=None, max_length=16)
    """e.g. 42%"""
    step: str | None = Field(default=None, max_length=32)
    """e.g. 120/285"""
    loss: str | None = Field(default=None, max_length=16)
    """e.g. 1.314"""
    eta: str | None = Field(default=None, max_length=16)
    """e.g. 6m"""
    model: str | None = Field(default=None, max_length=128)
    """Last part of the model's URI."""
    run: str | None = Field(default=None, max_length=16)
    """Start of the MLflow run id."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs of all its pods."""
    reason: str | None = Field(default=None, max_length=64)
    """Why it waits or why it ended."""


class MlflowStatus(Schema):
    """Where the run and the model are in MLflow."""

    run_id: str | None = Field(default=None, max_length=64)
    experiment_id: str | None = Field(default=None, max_length=64)
    url: str | None = Field(default=None, max_length=1024)
    """Page of the run."""
    model_name: str | None = Field(default=None, max_length=256)
    model_version: str | None = Field(default=None, max_length=32)
    run_closed: Literal["FINISHED", "FAILED", "KILLED"] | None = None
    """How the operator closed the run, once the pods were gone."""


class CheckpointStatus(Schema):
    """The newest verified checkpoint."""

    name: str = Field(max_length=128)
    step: int = Field(ge=0)


class QueueStatus(Schema):
    """Where the job waits."""

    name: str | None = Field(default=None, max_length=253)
    message: str | None = Field(default=None, max_length=1024)


class ProfileSnapshot(Schema):
    """The profile as it was when the job was accepted; a running job never changes under its owner.

    It lies in the status, which no user role may write.
    """

    name: str = Field(max_length=253)
    generation: int = Field(ge=0)
    spec: FineTuneProfileSpec


class FineTuneJobStatus(Schema):
    """What the operator knows of a job."""

    observed_generation: int | None = Field(default=None, ge=0)
    """Generation of the spec this status belongs to."""
    phase: Phase | None = None
    """Printed summary; derived from the conditions."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=16, json_schema_extra=LIST_MAP)
    """metav1 conditions, keyed by type."""
    attempt: int = Field(default=0, ge=0)
    """Number of the current attempt; 0 before the first."""
    attempts: tuple[Attempt, ...] = Field(default=(), max_length=ATTEMPTS_KEPT)
    """The last 10 attempts."""
    spent: Spent = Spent()
    """Retries spent."""
    progress: Progress | None = None
    """How far the current attempt is."""
    metrics: dict[str, float] = Field(default={}, max_length=32)
    """Final figures, e.g. basePerplexity and tunedPerplexity."""
    display: Display = Display()
    """Ready strings for the printed columns."""
    mlflow: MlflowStatus | None = None
    """Where the run and the model are in MLflow."""
    checkpoint: CheckpointStatus | None = None
    """The newest verified checkpoint."""
    queue: QueueStatus | None = None
    """Where the job waits."""
    output_uri: str | None = Field(default=None, max_length=2048)
    """The job's own output folder."""
    config_digest: str | None = Field(default=None, max_length=71)
    """SHA-256 of job.json, recorded before the first attempt; every attempt trains by that file."""
    start_time: datetime | None = None
    """When the first pod ran."""
    completion_time: datetime | None = None
    """When the job succeeded or failed."""
    active_seconds: float = Field(default=0.0, ge=0.0)
    """Time running, summed over ended attempts."""
    gpu_seconds: float = Field(default=0.0, ge=0.0)
    """GPUs times seconds, summed over ended attempts."""
    profile: ProfileSnapshot | None = None
    """The profile as it was when the job was accepted."""
