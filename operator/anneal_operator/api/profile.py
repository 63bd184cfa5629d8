"""FineTuneProfile: the administrator's side of a job.

Everything a person who may create FineTuneJobs must not choose lives here. Names of Secrets,
claims and service accounts mean objects in the job's namespace, put there by the administrator.
"""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from anneal_operator.api.condition import LIST_MAP, Condition
from anneal_operator.api.object_name import ObjectName
from anneal_operator.api.spec import Quantity, Seconds
from anneal_pipeline.config.schema import CelRule, Schema
from anneal_pipeline.config.values import Uri

UriPrefix = Annotated[
    str, Field(min_length=6, max_length=1024, pattern=r"^(hf|s3|pvc)://[^?#\\%\s]*$")
]
"""A URI prefix that is allowed; {namespace} stands for the job's namespace. Matches whole path
segments: s3://bucket/a allows s3://bucket/a/b but not s3://bucket/ab."""

Url = Annotated[str, Field(min_length=8, max_length=1024, pattern=r"^https?://[^\s@]+$")]


class ProfileImages(Schema):
    """Container images."""

    trainer: str = Field(min_length=1, max_length=512)
    """Image of the training pods."""
    pull_policy: str = Field(default="IfNotPresent", pattern=r"^(Always|IfNotPresent|Never)$")
    """When the kubelet pulls the image."""


class ProfileStorage(Schema):
    """S3-compatible storage of datasets and outputs."""

    endpoint: Url | None = None
    """URL of the S3 server. Default: AWS."""
    region: str = Field(default="us-east-1", max_length=64)
    """Region the requests are signed for."""
    credentials_secret: ObjectName | None = None
    """Secret in the job's namespace with an AWS shared credentials file under the key
    credentials. Default: none, the pod's own identity is used."""
    output_uri: Uri | None = Field(default=None, alias="outputURI")
    """Folder for the outputs of jobs that do not name their own."""
    allowed_read_uris: tuple[UriPrefix, ...] = Field(
        default=(), alias="allowedReadURIs", max_length=64
    )
    """URI prefixes datasets may be read from. Nothing else is allowed."""
    allowed_write_uris: tuple[UriPrefix, ...] = Field(
        default=(), alias="allowedWriteURIs", max_length=64
    )
    """URI prefixes outputs may be written to, beside outputURI. Nothing else is allowed."""


class ModelCache(Schema):
    """A shared cache of downloaded models."""

    pvc: ObjectName
    """Claim in the job's namespace."""


class ProfileModels(Schema):
    """Base models."""

    allowed_uris: tuple[UriPrefix, ...] = Field(default=(), alias="allowedURIs", max_length=64)
    """URI prefixes base models may be read from. Nothing else is allowed."""
    allow_tags: bool = False
    """Whether hf:// revisions may be tags or branches instead of commits."""
    cache: ModelCache | None = None
    """Shared cache of downloaded models. Default: none."""
    hub_endpoint: Url | None = None
    """URL of the hub or a mirror. Default: the public hub."""
    token_secret: ObjectName | None = None
    """Secret in the job's namespace with a hub token under the key token. Default: none."""


class ProfileTracking(Schema):
    """The MLflow server."""

    uri: Url
    """URL of the MLflow server. The operator must hold credentials for it, or know it as open."""
    credentials_secret: ObjectName | None = None
    """Secret in the job's namespace with the keys username and password, or token.
    Default: none."""


class ProfileLimits(Schema):
    """The most a job may ask for."""

    workers: int = Field(default=1, ge=1, le=256)
    """Worker pods."""
    gpus_per_worker: int = Field(default=8, ge=0, le=64)
    """GPUs of each pod."""
    active_seconds: Seconds | None = None
    """Longest time running over all attempts. Default: none."""
    grace_seconds: int = Field(default=600, ge=15, le=3600)
    """Longest checkpoint.graceSeconds that takes effect."""


class ProfileResources(Schema):
    """Resources of a worker pod that does not name its own."""

    gpus_per_worker: int = Field(default=1, ge=0, le=64)
    """GPUs."""
    cpus: Quantity = "4"
    """CPU request."""
    memory: Quantity = "32Gi"
    """Memory request and limit."""
    shared_memory: Quantity = "2Gi"
    """Size of /dev/shm, within memory."""
    scratch: Quantity = "100Gi"
    """Size limit of the scratch volume."""


class Toleration(Schema):
    """A toleration as Kubernetes spells it."""

    key: str | None = Field(default=None, max_length=317)
    operator: str = Field(default="Equal", pattern=r"^(Equal|Exists)$")
    value: str | None = Field(default=None, max_length=63)
    effect: str | None = Field(default=None, pattern=r"^(NoSchedule|PreferNoSchedule|NoExecute)$")
    toleration_seconds: int | None = Field(default=None, ge=0)


class ProfileVolume(Schema):
    """A PersistentVolumeClaim mounted into the training pods."""

    claim: ObjectName
    """Claim in the job's namespace."""
    mount_path: str = Field(min_length=2, max_length=256, pattern=r"^/[A-Za-z0-9._/-]+$")
    """Where it appears in the pod."""
    read_only: bool = True
    """Whether the pod may write to it."""


class EnvVar(Schema):
    """One environment variable of the training pods."""

    name: str = Field(max_length=128, pattern=r"^[A-Z_][A-Z0-9_]*$")
    value: str = Field(max_length=4096)


class ProfileRay(Schema):
    """Ray settings of the engine RayJob."""

    version: str | None = Field(default=None, max_length=32)
    """Ray version of the trainer image."""
    ray_start_params: dict[str, str] = Field(default={}, max_length=32)
    """Extra parameters of ray start."""


class ProfileQueue(Schema):
    """Kueue."""

    default: ObjectName | None = None
    """LocalQueue of jobs that name none. Default: none."""


class FineTuneProfileSpec(Schema):
    """What an administrator decides for the jobs that name this profile."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.resources.gpusPerWorker <= self.limits.gpusPerWorker",
            message="resources.gpusPerWorker, which jobs get by default, must not be greater than "
            "limits.gpusPerWorker",
        ),
    )

    images: ProfileImages
    """Container images."""
    service_account_name: ObjectName = "default"
    """Service account of the training pods. Its token is never mounted."""
    storage: ProfileStorage = ProfileStorage()
    """S3-compatible storage."""
    models: ProfileModels = ProfileModels()
    """Base models."""
    tracking: ProfileTracking
    """The MLflow server."""
    allowed_namespaces: tuple[str, ...] = Field(default=("*",), max_length=256)
    """Namespaces whose jobs may use this profile; * is all."""
    gpu_resource: str = Field(default="nvidia.com/gpu", max_length=253)
    """Extended resource that GPUs are requested by."""
    limits: ProfileLimits = ProfileLimits()
    """The most a job may ask for."""
    node_selector: dict[str, str] = Field(default={}, max_length=32)
    """Labels of the nodes training pods may run on."""
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=32)
    """Tolerations of the training pods."""
    resources: ProfileResources = ProfileResources()
    """Resources of a worker pod that does not name its own."""
    volumes: tuple[ProfileVolume, ...] = Field(default=(), max_length=16)
    """PersistentVolumeClaims mounted into the training pods."""
    ray: ProfileRay = ProfileRay()
    """Ray settings of the engine RayJob."""
    env: tuple[EnvVar, ...] = Field(default=(), max_length=64)
    """Environment of the training pods. Credentials do not belong here."""
    queue: ProfileQueue = ProfileQueue()
    """Kueue."""
    gpu_memory_bytes: int | None = Field(default=None, ge=1)
    """Memory of one GPU, for the fit check at admission. Default: unknown, no check."""

    @model_validator(mode="after")
    def _default_is_within_limits(self) -> Self:
        default, limit = self.resources.gpus_per_worker, self.limits.gpus_per_worker
        if default > limit:
            raise ValueError(
                f"resources.gpusPerWorker ({default}), which jobs get by default, must not be "
                f"greater than limits.gpusPerWorker ({limit})"
            )
        return self


class FineTuneProfileStatus(Schema):
    """What the operator found out about a profile."""

    observed_generation: int | None = None
    """Generation the conditions belong to."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=8, json_schema_extra=LIST_MAP)
    """Ready: whether jobs can use the profile."""
