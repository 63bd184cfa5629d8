"""The stored run config (job.json): everything an attempt needs to know but its number.

Written once per FineTuneJob into an immutable ConfigMap and used by every attempt. A newer trainer
reads older versions; `schema_version` is raised when a reader of the old form would go wrong.
"""

import json
from typing import Literal

from pydantic import Field

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.schema import Schema

SCHEMA_VERSION = 1
SIZE_BYTES_MAX = 512 * 1024


class JobIdentity(Schema):
    """Which FineTuneJob this run belongs to."""

    namespace: str
    name: str
    uid: str


class StorageAccess(Schema):
    """How S3 is reached. Credentials come from the mounted file, never from here."""

    endpoint: str | None = None
    """URL of the S3 server. Default: AWS."""
    region: str = "us-east-1"
    credentials_secret: str | None = None
    """Name of the Secret that the file is mounted from, for messages."""


class HubAccess(Schema):
    """How the Hugging Face hub is reached."""

    endpoint: str | None = None
    """URL of the hub or a mirror. Default: the public hub."""


class RunTracking(Schema):
    """Where the run and the model version go in MLflow."""

    uri: str
    """The MLflow server, or a database URL in a local run."""
    experiment: str
    registered_model: str
    alias: str
    tags: dict[str, str] = Field(default={})
    release: str = ""
    """Identity of the installation that owns the run; empty in a local run."""


class RunCompute(Schema):
    """What the attempt may use."""

    ranks_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: int = Field(default=0, ge=0)


class RunConfig(Schema):
    """The content of job.json."""

    schema_version: Literal[1] = 1
    job: JobIdentity
    pipeline: PipelineConfig
    output_uri: str
    """The job's own output folder, common to all attempts."""
    storage: StorageAccess = StorageAccess()
    hub: HubAccess = HubAccess()
    tracking: RunTracking
    compute: RunCompute = RunCompute()

    def to_text(self) -> str:
        """Return job.json as it is stored: the characters themselves, not escapes, count."""
        return json.dumps(self.to_data(), indent=2, sort_keys=True, ensure_ascii=False)
