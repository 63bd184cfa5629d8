"""FineTuneJob.spec: the pipeline's configuration and the Kubernetes parts around it.

Field docstrings are the descriptions `kubectl explain` shows. Only fields named in MUTABLE_FIELDS
may change after creation; the generated CEL rules refuse every other change.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from anneal_operator.api.names import DEFAULT_PROFILE
from anneal_operator.api.object_name import ObjectName
from anneal_operator.api.tracking import TrackingSpec
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.schema import CelRule, Schema
from anneal_pipeline.config.values import Uri

MUTABLE_FIELDS = ("suspend", "ttlSecondsAfterFinished", "queue.priorityClass")

Quantity = Annotated[
    str,
    Field(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"),
]
"""A Kubernetes resource quantity, e.g. 500m, 4 or 16Gi."""

_NO_FLOAT16_ON_A_CPU = (
    "tuning.quantization.computeDtype float16 is for GPUs, but compute.gpusPerWorker is 0; use "
    "auto or float32, or ask for a GPU"
)

Seconds = Annotated[int, Field(ge=1, le=31_536_000)]
"""A duration of at most a year."""


class OutputSpec(Schema):
    """Where the job's files go."""

    uri: Uri | None = None
    """Folder under which the job's own folder <namespace>/<name>-<uid> is made. Default: the
    profile's storage.outputURI."""


class ComputeSpec(Schema):
    """What the job runs on."""

    profile: ObjectName = DEFAULT_PROFILE
    """The FineTuneProfile, made by the administrator, that names image, storage and limits."""
    workers: int = Field(default=1, ge=1, le=256)
    """Worker pods."""
    ranks_per_worker: int | None = Field(default=None, ge=1, le=64)
    """Training processes in each pod, which share its CPUs and memory; each has one GPU or none.
    They divide every batch, and train what one would; no more of them over all workers than
    training.batchSize. Default: one per GPU, at least one."""
    gpus_per_worker: int | None = Field(default=None, ge=0, le=64)
    """GPUs of each pod. Default: the profile's resources.gpusPerWorker."""
    cpus: Quantity | None = None
    """CPU request of each pod. Default: the profile's resources.cpus."""
    memory: Quantity | None = None
    """Memory request and limit of each pod. Default: the profile's resources.memory."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm, within memory. Default: the profile's resources.sharedMemory."""
    engine: Literal["Auto", "Job", "RayJob"] = "Auto"
    """Job runs one pod with Ray inside; RayJob a Ray cluster by KubeRay. Auto takes Job for one
    worker, RayJob for more."""


class QueueSpec(Schema):
    """Admission by Kueue."""

    name: ObjectName | None = None
    """The LocalQueue to wait in. Default: none, the job starts at once."""
    priority_class: ObjectName | None = None
    """Kueue's WorkloadPriorityClass. May change while the job waits."""


class RetrySpec(Schema):
    """How often a failed attempt is repeated, by who is to blame. -1 is without limit."""

    infrastructure: int = Field(default=3, ge=-1, le=100)
    """Attempts after failures of nodes, network, stores or Anneal itself."""
    preemption: int = Field(default=-1, ge=-1, le=10_000)
    """Attempts after interruptions that saved a checkpoint."""
    user: int = Field(default=0, ge=0, le=100)
    """Attempts after mistakes in the input; more than 0 is only of use while trying things out."""
    backoff_seconds: int = Field(default=10, ge=0, le=3600)
    """Wait before the second attempt; doubles with every further one, up to an hour."""
    exclude_failed_nodes: bool = False
    """Keep off the node on which the last attempt failed."""


class DeadlinesSpec(Schema):
    """Limits in time, in seconds."""

    pending_seconds: Seconds | None = None
    """Longest wait before the first pod runs. Default: none."""
    active_seconds: Seconds | None = None
    """Longest time running, summed over all attempts and not reset by a resume. Default: none."""
    stall_seconds: Seconds = 1800
    """Longest time without any work done; then the attempt counts as hung and is repeated."""


class FineTuneJobSpec(PipelineConfig):
    """What a user asks for."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        *PipelineConfig.cel_rules,
        CelRule(
            rule="self.model.uri.matches('^(hf|s3|pvc)://')",
            message="model.uri must begin with hf://, s3:// or pvc://",
        ),
        CelRule(
            rule="!has(self.dataset.uri) || self.dataset.uri.matches('^(hf|s3|pvc)://')",
            message="dataset.uri must begin with hf://, s3:// or pvc://",
        ),
        CelRule(
            rule="!has(self.dataset.files) || (self.dataset.files.train.matches('^(hf|s3|pvc)://')"
            " && (!has(self.dataset.files.validation)"
            " || self.dataset.files.validation.matches('^(hf|s3|pvc)://'))"
            " && (!has(self.dataset.files.test)"
            " || self.dataset.files.test.matches('^(hf|s3|pvc)://')))",
            message="every one of dataset.files must begin with hf://, s3:// or pvc://",
        ),
        CelRule(
            rule="self.compute.engine != 'Job' || self.compute.workers == 1",
            message="engine Job has exactly one worker; use RayJob or Auto for more",
        ),
        CelRule(
            rule="!has(self.compute.ranksPerWorker)"
            " || self.compute.ranksPerWorker * self.compute.workers <= self.training.batchSize",
            message="compute.ranksPerWorker times compute.workers must not be greater than "
            "training.batchSize, or ranks would have no rows; lower ranksPerWorker or raise "
            "batchSize",
        ),
        CelRule(
            rule="!has(self.compute.gpusPerWorker) || self.compute.gpusPerWorker > 0"
            " || self.tuning.quantization.computeDtype != 'float16'",
            message=_NO_FLOAT16_ON_A_CPU,
        ),
    )

    output: OutputSpec = OutputSpec()
    """Where the job's files go."""
    tracking: TrackingSpec = TrackingSpec()
    """The MLflow run and the registered model."""
    compute: ComputeSpec = ComputeSpec()
    """What the job runs on."""
    queue: QueueSpec = QueueSpec()
    """Admission by Kueue."""
    retry: RetrySpec = RetrySpec()
    """How often a failed attempt is repeated."""
    deadlines: DeadlinesSpec = DeadlinesSpec()
    """Limits in time."""
    suspend: bool = False
    """true: save a checkpoint, stop and free the GPUs; false: go on from there. May change."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=31_536_000)
    """Delete this resource so long after it finished; never the model. May change.
    Default: none, it stays."""

    @model_validator(mode="after")
    def _no_rank_is_idle(self) -> Self:
        ranks, batch = self.compute.ranks_per_worker, self.training.batch_size
        if ranks is not None and ranks * self.compute.workers > batch:
            raise ValueError(
                f"compute.ranksPerWorker ({ranks}) times compute.workers ({self.compute.workers}) "
                f"must not be greater than training.batchSize ({batch}), or ranks would have no "
                f"rows; lower ranksPerWorker or raise batchSize"
            )
        return self

    @model_validator(mode="after")
    def _float16_has_a_gpu(self) -> Self:
        is_float16 = self.tuning.quantization.compute_dtype == "float16"
        if is_float16 and self.compute.gpus_per_worker == 0:
            raise ValueError(_NO_FLOAT16_ON_A_CPU)
        return self

    def pipeline(self) -> PipelineConfig:
        """Return the part the pipeline itself reads."""
        return PipelineConfig(**{name: getattr(self, name) for name in PipelineConfig.model_fields})
