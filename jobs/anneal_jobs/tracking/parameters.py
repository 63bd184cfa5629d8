"""The resolved configuration as MLflow parameters and tags, written once and never in conflict."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Param, RunTag

log = logging.getLogger(__name__)

TAG_NOTE = "mlflow.note.content"
"""What a run's page shows as its description, as Markdown."""
_BATCH = 100  # MLflow's limit of parameters and of tags per request.
_PARAMETER_CHARS = 6000
_TAG_CHARS = 8000


def write_parameters(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Write the parameters the run does not have yet; MLflow never changes one that is there."""
    present = client.get_run(run_id).data.params
    differing = sorted(k for k, v in values.items() if k in present and present[k] != _cut(v))
    if differing:
        log.warning("run %s keeps its first value of %s", run_id, ", ".join(differing))
    params = [Param(key, _cut(value)) for key, value in values.items() if key not in present]
    for start in range(0, len(params), _BATCH):
        client.log_batch(run_id, params=params[start : start + _BATCH])


def write_tags(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    tags = [RunTag(key, value[:_TAG_CHARS]) for key, value in values.items()]
    for start in range(0, len(tags), _BATCH):
        client.log_batch(run_id, tags=tags[start : start + _BATCH])


def _cut(value: str) -> str:
    return value[:_PARAMETER_CHARS]
