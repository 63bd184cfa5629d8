"""A FineTuneJob on this machine: where its files, its scratch space and its MLflow run are.

The same file, name and output folder mean the same job: running it again resumes it.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from anneal_jobs.attempt import Attempt, AttemptFolders
from anneal_jobs.cli.job_file import JobFile
from anneal_jobs.errors import STORAGE_ACCESS_DENIED
from anneal_jobs.inputs import CONFIG_NAME, check_local_inputs
from anneal_jobs.storage.outputs import LOGS_NAME
from anneal_jobs.storage.uri import parse_uri
from anneal_operator.api.run_config import JobIdentity, RunConfig, RunTracking, StorageAccess
from anneal_pipeline.checkpoint.store import BlobFolder
from anneal_pipeline.errors import UserError

RUNS_FOLDER = "anneal-runs"
_NAMESPACE = "local"


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """What the command line adds to the file."""

    output: str | None
    tracking_uri: str | None
    s3_endpoint: str | None


def output_of(job: JobFile, options: LocalOptions) -> str:
    """The address of the job's folder."""
    base = options.output or job.spec.output.uri or RUNS_FOLDER
    output = f"{base.rstrip('/')}/{job.name}"
    uri = parse_uri(output)
    return str(Path(uri.path).expanduser().resolve()) if uri.scheme == "file" else output


def check_before_first_run(job: JobFile, options: LocalOptions) -> None:
    """Meet a missing model or dataset on this disk before anything is imported or made.

    Then make the output folder, so that a place that cannot be written to is met as early. A folder
    that has seen a run is left to the run itself: what is done stays done without inputs.
    """
    output = parse_uri(output_of(job, options))
    if output.scheme != "file":
        return
    folder = Path(output.path)
    if not (folder / CONFIG_NAME).is_file():
        check_local_inputs(job.spec.model, job.spec.dataset)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            STORAGE_ACCESS_DENIED,
            f"The output folder {folder} cannot be written to ({error.strerror}); name another one "
            "with --output.",
        ) from error


def run_config_of(job: JobFile, options: LocalOptions) -> RunConfig:
    """What the operator would write into job.json, for this machine."""
    output = output_of(job, options)
    tracking = job.spec.tracking
    return RunConfig(
        job=JobIdentity(
            namespace=_NAMESPACE, name=job.name, uid=str(uuid.uuid5(uuid.NAMESPACE_URL, output))
        ),
        pipeline=job.spec.pipeline(),
        output_uri=output,
        storage=StorageAccess(
            endpoint=options.s3_endpoint, region=os.environ.get("AWS_REGION", "us-east-1")
        ),
        tracking=RunTracking(
            uri=_tracking_uri(options, output=output),
            experiment=tracking.experiment or _NAMESPACE,
            registered_model=tracking.registered_model or job.name,
            alias=tracking.alias,
            tags=tracking.tags,
        ),
    )


def artefact_location(config: RunConfig) -> str | None:
    """Where a local MLflow database keeps artefacts; a server decides for itself."""
    uri = config.tracking.uri
    if not uri.startswith("sqlite:"):
        return None
    database = Path(uri.removeprefix("sqlite:///"))
    return (database.parent / "mlartifacts").resolve().as_uri()


def attempt_of(config: RunConfig, *, number: int, run_id: str) -> Attempt:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    scratch = cache / "anneal" / "runs" / config.job.uid
    scratch.mkdir(parents=True, exist_ok=True)
    attempt = Attempt(
        config=config,
        number=number,
        trusts_prepared_data=False,
        writer_name=uuid.uuid4().hex[:8],
        run_id=run_id,
        folders=AttemptFolders(scratch=scratch),
    )
    attempt.folders.stop_file.unlink(missing_ok=True)
    return attempt


def attempt_folder(number: int) -> str:
    return f"{LOGS_NAME}/attempt-{number:02d}"


def last_attempt(folder: BlobFolder) -> int:
    """The number of the newest attempt that has left an outcome; 0 before the first."""
    parts = [name.split("/") for name in folder.list_names() if name.startswith(f"{LOGS_NAME}/")]
    numbers = [
        p[1].removeprefix("attempt-") for p in parts if len(p) == 3 and p[2] == "outcome.json"
    ]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _tracking_uri(options: LocalOptions, *, output: str) -> str:
    if chosen := options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return chosen
    is_local = parse_uri(output).scheme == "file"
    folder = Path(output).parent if is_local else Path(RUNS_FOLDER).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"
