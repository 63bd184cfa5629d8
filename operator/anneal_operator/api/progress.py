"""The progress protocol: Kubeflow Trainer's status report (KEP-2779) with an `anneal` object.

The trainer POSTs one ProgressReport; the server answers 200, 401 (token), 403 (not a pod of the
current attempt), 409 (this attempt is no longer the current one: stop) or 413.
"""

from datetime import datetime

from pydantic import Field

from anneal_operator.api.outcome import Outcome
from anneal_pipeline.config.schema import Schema

MIN_INTERVAL_SECONDS = 5.0
"""A trainer reports at most once in this time; only the outcome is sent at once."""

BODY_BYTES_MAX = 64 * 1024


def report_path(namespace: str, job_name: str) -> str:
    """Return the path of a job's report, under the server's URL."""
    return f"/apis/anneal.dev/v1alpha1/namespaces/{namespace}/finetunejobs/{job_name}/status"


class Metric(Schema):
    """One named figure; Kubeflow spells the value as a string."""

    name: str = Field(max_length=128)
    value: str = Field(max_length=64)


class TrainerStatus(Schema):
    """The fields of Kubeflow Trainer's protocol."""

    progress_percentage: int | None = Field(default=None, ge=0, le=100)
    estimated_remaining_seconds: int | None = Field(default=None, ge=0)
    metrics: tuple[Metric, ...] = Field(default=(), max_length=64)
    last_updated_time: datetime


class ProgressEvent(Schema):
    """Something that happened in the run and that a person may want to know."""

    name: str = Field(max_length=64)
    message: str = Field(max_length=1024)


class StageProgress(Schema):
    """Work done in the current stage; feeds the stall clock."""

    name: str = Field(max_length=32)
    """prepare, load, train, evaluate, export, upload or register."""
    done: int = Field(ge=0)
    total: int | None = Field(default=None, ge=0)
    unit: str = Field(default="", max_length=16)
    """bytes, rows, batches or steps."""


class AnnealStatus(Schema):
    """What Anneal reports beside the Kubeflow fields."""

    attempt: int = Field(ge=1)
    stage: StageProgress | None = None
    step: int | None = Field(default=None, ge=0)
    total_steps: int | None = Field(default=None, ge=0)
    loss: float | None = None
    checkpoint: str | None = Field(default=None, max_length=128)
    checkpoint_step: int | None = Field(default=None, ge=0)
    events: tuple[ProgressEvent, ...] = Field(default=(), max_length=16)
    outcome: Outcome | None = None


class ProgressReport(Schema):
    """The body of one POST."""

    trainer_status: TrainerStatus
    anneal: AnnealStatus
