"""The tuned adapter as a LoggedModel and as a version of a registered model, once.

Idempotent at every step: a version that carries this job's uid and this artefact's digest is taken
as it is; so is a LoggedModel of the run, finished if it is not yet. The run names the LoggedModel
as its output, which is what its page shows, only when that is complete. The alias moves last, so
that it never names half a model. Files go through the MLflow server: no storage credentials are
needed here or for loading.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException

from anneal_jobs.errors import TRACKING_FAILED, InfrastructureError
from anneal_jobs.tracking.connection import UnreachableError, cause_of, tell_outage_apart
from anneal_operator.api.names import TAG_ARTEFACT_DIGEST, TAG_JOB_UID

RETRY_SECONDS = 300.0
"""How long an unreachable registry is asked again before the attempt counts as failed."""
_PAUSE_SECONDS = 5.0
_EXISTS = "RESOURCE_ALREADY_EXISTS"


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What is to be registered."""

    name: str
    alias: str
    adapter_dir: Path
    tags: Mapping[str, str]
    """Of the version; must hold the job's uid and the artefact's digest."""
    description: str
    metrics: Mapping[str, float]
    step: int


def register(
    client: MlflowClient,
    run_id: str,
    registration: Registration,
    *,
    within_seconds: float = RETRY_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Register and return NAME/VERSION, trying again while MLflow does not answer."""
    until = clock() + within_seconds
    while True:
        try:
            with tell_outage_apart():
                return _register_once(client, run_id, registration)
        except UnreachableError as error:
            if clock() + _PAUSE_SECONDS >= until:
                raise _failed(
                    registration,
                    f"MLflow did not answer for {within_seconds:.0f} s ({cause_of(error)})",
                ) from error
        except MlflowException as error:
            raise _failed(registration, f"MLflow refused it ({error})") from error
        sleep(_PAUSE_SECONDS)


def logged_model_name(registered_name: str) -> str:
    """The LoggedModel's name: MLflow takes a dot in a registered model's (llama-3.2), not here."""
    return registered_name.replace(".", "-")


def _register_once(client: MlflowClient, run_id: str, registration: Registration) -> str:
    name = registration.name
    version = _find_version(client, registration)
    if version is None:
        model_id = _logged_model(client, run_id, registration)
        _ensure_output(client, run_id, model_id, step=registration.step)
        _ensure_registered_model(client, name)
        version = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags=dict(registration.tags),
            description=registration.description,
            model_id=model_id,
        ).version
    client.set_registered_model_alias(name, registration.alias, str(version))
    return f"{name}/{version}"


def _find_version(client: MlflowClient, registration: Registration) -> str | None:
    uid, digest = registration.tags[TAG_JOB_UID], registration.tags[TAG_ARTEFACT_DIGEST]
    found = client.search_model_versions(
        f"name = '{registration.name}' and tag.`{TAG_JOB_UID}` = '{uid}'"
    )
    same = [v for v in found if v.tags.get(TAG_ARTEFACT_DIGEST) == digest]
    return str(same[0].version) if same else None


def _logged_model(client: MlflowClient, run_id: str, registration: Registration) -> str:
    run = client.get_run(run_id)
    digest = registration.tags[TAG_ARTEFACT_DIGEST]
    existing = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
    )
    same = [model for model in existing if model.tags.get(TAG_ARTEFACT_DIGEST) == digest]
    for model in same:
        if model.status == LoggedModelStatus.READY:
            return str(model.model_id)
    begun = [model for model in same if model.status == LoggedModelStatus.PENDING]
    model = (
        begun[0]
        if begun
        else client.create_logged_model(
            run.info.experiment_id,
            name=logged_model_name(registration.name),
            source_run_id=run_id,
            tags=dict(registration.tags),
            model_type="peft-adapter",
        )
    )
    client.log_model_artifacts(model.model_id, str(registration.adapter_dir))
    client.log_batch(run_id, metrics=_metrics(registration, model_id=str(model.model_id)))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _ensure_output(client: MlflowClient, run_id: str, model_id: str, *, step: int) -> None:
    """Name the LoggedModel as an output of the run; MLflow would list it twice if told twice."""
    outputs = client.get_run(run_id).outputs
    known = {output.model_id for output in outputs.model_outputs} if outputs else set()
    if model_id not in known:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])


def _metrics(registration: Registration, *, model_id: str) -> list[Metric]:
    now_ms = time.time_ns() // 1_000_000
    return [
        Metric(
            key=f"final/{key}",
            value=value,
            timestamp=now_ms,
            step=registration.step,
            model_id=model_id,
        )
        for key, value in registration.metrics.items()
    ]


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != _EXISTS:
            raise


def _failed(registration: Registration, why: str) -> InfrastructureError:
    return InfrastructureError(
        TRACKING_FAILED,
        f"The model is trained and stored, but could not be registered as {registration.name}: "
        f"{why}; the next attempt only registers.",
    )
