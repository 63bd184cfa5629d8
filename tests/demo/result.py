"""The demo's facts for programs: build/demo/result.json."""

import json
from dataclasses import asdict, dataclass

from failure import JobFailedError
from job import JOB_NAME, Job
from layout import JOB_NAMESPACE, RESULT_FILE


@dataclass(frozen=True, kw_only=True)
class Result:
    """Spelled as in the file. Perplexities are of responses, on held-out rows."""

    job: str
    namespace: str
    phase: str
    runId: str
    mlflowUrl: str
    modelName: str
    modelVersion: str
    basePerplexity: float
    tunedPerplexity: float
    trainSeconds: float
    totalSeconds: float
    outputUri: str

    @property
    def fall(self) -> float:
        """How much the perplexity fell, as a share of the base's."""
        return 1.0 - self.tunedPerplexity / self.basePerplexity

    def write(self) -> None:
        RESULT_FILE.parent.mkdir(parents=True, exist_ok=True)
        RESULT_FILE.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def result_of(job: Job, *, total_seconds: float) -> Result:
    """Take the facts from the status; raise when a succeeded job lacks one."""
    try:
        return Result(
            job=JOB_NAME,
            namespace=JOB_NAMESPACE,
            phase=job.phase,
            runId=job.mlflow["runId"],
            mlflowUrl=job.mlflow["url"],
            modelName=job.mlflow["modelName"],
            modelVersion=str(job.mlflow["modelVersion"]),
            basePerplexity=job.metrics["basePerplexity"],
            tunedPerplexity=job.metrics["tunedPerplexity"],
            trainSeconds=round(job.metrics["trainSeconds"], 1),
            totalSeconds=round(total_seconds, 1),
            outputUri=job.output_uri,
        )
    except KeyError as error:
        raise JobFailedError(
            f"finetunejob {JOB_NAME} is {job.phase}, but its status has no {error.args[0]}"
        ) from error
