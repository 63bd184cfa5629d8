"""Replicas of the operator, as processes of their own."""

import itertools
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

_numbers = itertools.count(1)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class OperatorProcess:
    """One replica of the operator."""

    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> "OperatorProcess":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "anneal_operator"],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )
        return self

    def kill(self) -> None:
        """SIGKILL: no chance to tidy up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=30)

    @property
    def progress_url(self) -> str:
        return self.environment["ANNEAL_PROGRESS_URL"]

    @property
    def health_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['ANNEAL_HEALTH_PORT']}"

    def lines(self) -> str:
        return self.log.read_text()


@dataclass
class Operators:
    """Makes replicas, and ends them all after the test."""

    kubeconfig: Path
    tls_dir: Path
    mlflow_uri: str
    namespace: str
    folder: Path
    made: list[OperatorProcess] = field(default_factory=list)

    def __call__(self, **settings: str) -> OperatorProcess:
        number = next(_numbers)
        port = free_port()
        environment = {
            "ANNEAL_RELEASE": "anneal",
            "ANNEAL_POD_NAMESPACE": self.namespace,
            "ANNEAL_POD_NAME": f"operator-{number}",
            "ANNEAL_POD_IP": "127.0.0.1",
            "ANNEAL_WATCH_NAMESPACES": self.namespace,
            "ANNEAL_PROGRESS_URL": f"https://localhost:{port}",
            "ANNEAL_PROGRESS_HOST": "127.0.0.1",
            "ANNEAL_PROGRESS_PORT": str(port),
            "ANNEAL_PROGRESS_TLS_DIR": str(self.tls_dir),
            "ANNEAL_HEALTH_HOST": "127.0.0.1",
            "ANNEAL_HEALTH_PORT": str(free_port()),
            "ANNEAL_TRACKING_SERVERS": f'[{{"uri": "{self.mlflow_uri}"}}]',
            "ANNEAL_KUBECONFIG": str(self.kubeconfig),
            "ANNEAL_LOG_LEVEL": "DEBUG",
            **settings,
        }
        operator = OperatorProcess(environment, log=self.folder / f"operator-{number}.log")
        self.made.append(operator)
        return operator.start()
