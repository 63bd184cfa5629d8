"""The MLflow run of a job without an operator: found again by its uid tag, closed truthfully.

In a cluster the operator does this; `anneal run` has to do it for itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import RunStatus

from anneal_jobs.tracking.parameters import TAG_NOTE
from anneal_operator.api.names import TAG_JOB_NAME, TAG_JOB_UID

RunEnd = Literal["FINISHED", "FAILED", "KILLED"]
_EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Else MLflow opens the experiment on its pages for prompts and traces."""


def ensure_run(
    client: MlflowClient,
    *,
    experiment: str,
    artifact_location: str | None,
    job_name: str,
    job_uid: str,
    tags: Mapping[str, str],
    note: str,
) -> str:
    """The id of the job's run, made if there is none yet, and RUNNING again if it had ended.

    `note` is what its page says until the end has more to say, and whenever there is no such end.
    """
    experiment_id = _ensure_experiment(client, experiment, artifact_location=artifact_location)
    found = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{TAG_JOB_UID}` = '{job_uid}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    if found:
        run_id = str(found[0].info.run_id)
        client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        client.set_tag(run_id, TAG_NOTE, note)
        return run_id
    run = client.create_run(
        experiment_id,
        start_time=time.time_ns() // 1_000_000,
        run_name=f"{job_name}-{job_uid[:8]}",
        tags={TAG_JOB_UID: job_uid, TAG_JOB_NAME: job_name, TAG_NOTE: note, **tags},
    )
    return str(run.info.run_id)


def close_run(client: MlflowClient, run_id: str, *, end: RunEnd, note: str | None = None) -> None:
    """Close the run as what it was; `note` says why where that is not its summary."""
    if note is not None:
        client.set_tag(run_id, TAG_NOTE, note)
    client.set_terminated(run_id, status=end)


def _ensure_experiment(client: MlflowClient, name: str, *, artifact_location: str | None) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    return str(
        client.create_experiment(name, artifact_location=artifact_location, tags=_EXPERIMENT_KIND)
    )
