"""A client of an MLflow server, with waits short enough that an outage is noticed.

Credentials come as files of a mounted Secret and are handed to MLflow in the environment of this
process only, because that is the one way its client reads them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from anneal_operator.api.names import TRACKING_CREDENTIALS_FOLDER

_VARIABLES = {
    "username": "MLFLOW_TRACKING_USERNAME",
    "password": "MLFLOW_TRACKING_PASSWORD",
    "token": "MLFLOW_TRACKING_TOKEN",
}
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_SYSTEM_ERROR = re.compile(r"\[Errno -?\d+\] ([\w ,-]+)")
_TOO_MANY_REQUESTS = 429
_REQUEST_TIMEOUT = 408


class UnreachableError(Exception):
    """MLflow does not answer, or not now: trying again later makes sense."""


def connect(uri: str, *, credentials: Path = Path(TRACKING_CREDENTIALS_FOLDER)) -> MlflowClient:
    """Make a client for the server (or local database) at `uri`; no request is sent yet."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for key, variable in _VARIABLES.items():
        if (credentials / key).is_file():
            os.environ[variable] = (credentials / key).read_text(encoding="utf-8").strip()
    # The SQL registry looks LoggedModels up by the process-wide address, not by the client's.
    mlflow.set_tracking_uri(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def tell_outage_apart() -> Iterator[None]:
    """Turn errors that a later try may not meet into `UnreachableError`; let refusals through."""
    try:
        yield
    except MlflowException as error:
        if _is_transient(int(error.get_http_status_code())):
            raise UnreachableError(str(error)) from error
        raise
    except requests.HTTPError as error:
        if error.response is None or _is_transient(error.response.status_code):
            raise UnreachableError(str(error)) from error
        raise
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise UnreachableError(str(error)) from error


def cause_of(error: Exception) -> str:
    """What went wrong, without the layers that the HTTP client wraps around it."""
    text = " ".join(str(error).split())
    innermost = _SYSTEM_ERROR.search(text)
    return innermost[1] if innermost else text


def _is_transient(status: int) -> bool:
    return status >= 500 or status in (_TOO_MANY_REQUESTS, _REQUEST_TIMEOUT)
