"""Proves that the MLflow address printed at the end opens, and shows the run."""

import json
import urllib.error
import urllib.request

from failure import DemoError
from result import Result

_TIMEOUT_SECONDS = 30


def server_of(url: str) -> str:
    """Return the server's part of a page's address."""
    return url.partition("/#")[0].rstrip("/")


def check_page_opens(result: Result) -> None:
    """Fetch the page and the run behind it as a browser would; raise when either fails."""
    server = server_of(result.mlflowUrl)
    _fetch(f"{server}/")
    answer = json.loads(_fetch(f"{server}/ajax-api/2.0/mlflow/runs/get?run_id={result.runId}"))
    status = answer["run"]["info"]["status"]
    if status != "FINISHED":
        raise DemoError(f"MLflow shows run {result.runId} as {status}, expected FINISHED")


def _fetch(url: str) -> bytes:
    try:
        # The address is of the demo's own server.
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            body: bytes = answer.read()
            return body
    except (urllib.error.URLError, TimeoutError) as error:
        raise DemoError(f"MLflow's page {url} does not open: {error}") from error
