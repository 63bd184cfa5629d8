"""What job.json says: the spec and the profile brought together for the trainer. Pure.

Made at admission to measure it, and again, equal but for the release, when it is stored. From then
on the stored text is what the job trains by, whatever a later operator would write: its digest is
in the status, which no user may write.
"""

from __future__ import annotations

import hashlib

from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.run_config import (
    HubAccess,
    JobIdentity,
    RunCompute,
    RunConfig,
    RunTracking,
    StorageAccess,
)
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.observation import Job
from anneal_pipeline.config.pipeline import PipelineConfig


def run_config(
    job: Job,
    *,
    spec: FineTuneJobSpec,
    profile: FineTuneProfileSpec,
    output_uri: str,
    release: str,
) -> RunConfig:
    """The stored run config of a job."""
    gpus = num_gpus(spec, profile)
    return RunConfig(
        job=JobIdentity(namespace=job.namespace, name=job.name, uid=job.uid),
        pipeline=effective_pipeline(spec, profile),
        output_uri=output_uri,
        storage=StorageAccess(
            endpoint=profile.storage.endpoint,
            region=profile.storage.region,
            credentials_secret=profile.storage.credentials_secret,
        ),
        hub=HubAccess(endpoint=profile.models.hub_endpoint),
        tracking=RunTracking(
            uri=profile.tracking.uri,
            experiment=spec.tracking.experiment or job.namespace,
            registered_model=spec.tracking.registered_model or job.name,
            alias=spec.tracking.alias,
            tags=spec.tracking.tags,
            release=release,
        ),
        compute=RunCompute(
            ranks_per_worker=spec.compute.ranks_per_worker or max(1, gpus), gpus_per_worker=gpus
        ),
    )


def digest_of(text: str) -> str:
    """SHA-256 of a job.json, as `status.configDigest` has it."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def effective_pipeline(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> PipelineConfig:
    """The pipeline's config within the profile's limits: the trainer must not count on more."""
    pipeline = spec.pipeline()
    grace = min(pipeline.checkpoint.grace_seconds, profile.limits.grace_seconds)
    checkpoint = pipeline.checkpoint.model_copy(update={"grace_seconds": grace})
    return pipeline.model_copy(update={"checkpoint": checkpoint})


def num_gpus(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> int:
    """GPUs of each pod."""
    asked = spec.compute.gpus_per_worker
    return profile.resources.gpus_per_worker if asked is None else asked
