"""A real S3 server and a real MLflow server on loopback for the jobs side."""

import gc
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest

from anneal_jobs.storage.s3 import S3Settings

if TYPE_CHECKING:
    from .trial import Trial

CACHE = Path(os.environ.get("ANNEAL_CACHE") or Path.home() / ".cache" / "anneal")
VERSITYGW = CACHE / "bin" / "versitygw"
ACCESS_KEY, SECRET_KEY = "annealtestaccesskey1", "annealtestsecretkey1"
BUCKET = "jobs"
START_SECONDS = 300.0
"""Generous: a busy machine with two cores starts MLflow slowly."""


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    root: Path
    credentials: Path

    @property
    def settings(self) -> S3Settings:
        return S3Settings(endpoint=self.endpoint, region="us-east-1")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the server answers anything at all."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, f"the server for {url} ended with {process.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310  # loopback
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"{url} did not answer within {START_SECONDS} s")


def write_credentials(
    path: Path, *, access_key: str = ACCESS_KEY, secret: str = SECRET_KEY
) -> Path:
    path.write_text(
        f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret}\n"
    )
    return path


@pytest.fixture
def ended_transfers_are_forgotten() -> Iterator[None]:
    """For a test whose callback ends a transfer.

    boto3 and httpx leave the connection of such a transfer to the garbage collector, whose warning
    would else fail whichever test runs when it comes.
    """
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    assert VERSITYGW.exists(), f"{VERSITYGW} is missing: run `make programs`"
    folder = tmp_path_factory.mktemp("s3")
    for name in ("root", "iam", "versions"):
        (folder / name).mkdir()
    port = free_port()
    command = [str(VERSITYGW), "--quiet", "--port", f"127.0.0.1:{port}", "--iam-dir"]
    command += [str(folder / "iam"), "posix", "--versioning-dir", str(folder / "versions")]
    environment = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(folder / "root")], env=environment, stdout=log, stderr=log
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/", process)
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield S3Server(
            endpoint=f"http://127.0.0.1:{port}",
            root=folder / "root",
            credentials=write_credentials(folder / "credentials"),
        )
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server with its credentials in place, as the pod's mount has them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(s3_server.credentials))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return s3_server


class MlflowServer:
    """`mlflow server` on SQLite with proxied artefacts; can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--workers",
            "1",
        ]
        command += ["--port", str(self._port), "--serve-artifacts"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        # Its queue of background jobs takes half of the start and is of no use here.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=environment,
                start_new_session=True,
            )
        wait_for(f"{self.uri}/health", self._process)

    def stop(self) -> None:
        if self._process is not None:
            # The server runs its workers in processes of its own: end the whole session.
            os.killpg(self._process.pid, 15)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from .tiny import write_model  # torch and transformers: only for the tests that train

    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def trial(
    s3: S3Server, mlflow_server: MlflowServer, tmp_path: Path, tiny_model: Path
) -> Iterator["Trial"]:
    from .trial import Trial  # MLflow: only for the tests that train

    trial = Trial(s3=s3, mlflow=mlflow_server, folder=tmp_path, model=tiny_model)
    trial.progress.start()
    yield trial
    trial.progress.stop()
