"""A real MLflow server on SQLite, and what a test asks of it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from mlflow.tracking import MlflowClient
from tests.integration.operator.operator_process import free_port
from tests.integration.operator.trainer import DIGEST


@contextmanager
def serve_mlflow(folder: Path) -> Iterator[str]:
    """An MLflow server while the block runs; yields its URI."""
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "mlflow"),
        "server",
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as server,
    ):
        uri = f"http://127.0.0.1:{port}"
        try:
            _until_healthy(uri, server=server, log=folder / "log")
            yield uri
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def _until_healthy(uri: str, *, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1500):
        assert server.poll() is None, log.read_text()
        try:
            with urlopen(f"{uri}/health", timeout=5):  # noqa: S310 - our own loopback server
                return
        except (URLError, ConnectionError, TimeoutError):
            server_is_slow = 0.2
            try:
                server.wait(server_is_slow)
            except subprocess.TimeoutExpired:
                continue
    raise AssertionError(f"MLflow did not become healthy: {log.read_text()}")


class Mlflow:
    """What a test asks of the MLflow server, through its own client."""

    def __init__(self, uri: str) -> None:
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def runs(self, job_uid: str) -> list[Any]:
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        where = f"tags.`anneal.job.uid` = '{job_uid}'"
        return list(self.client.search_runs(experiments, filter_string=where))

    def register(self, name: str, *, run_id: str, digest: str = DIGEST) -> str:
        """A version as the trainer registers it; returns NAME/VERSION."""
        self.client.create_registered_model(name)
        version = self.client.create_model_version(
            name, source=f"runs:/{run_id}", run_id=run_id, tags={"anneal.artefact.digest": digest}
        )
        return f"{name}/{version.version}"
