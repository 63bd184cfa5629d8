"""Port-forwards to services, for clusters whose addresses this machine cannot reach."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from failure import DemoError
from target import Target

_START_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Tunnel:
    """From a port of this machine to one of a service."""

    namespace: str
    service: str
    local_port: int
    port: int

    @property
    def words(self) -> list[str]:
        """What follows `kubectl`."""
        ports = f"{self.local_port}:{self.port}"
        return [f"--namespace={self.namespace}", "port-forward", f"service/{self.service}", ports]


@contextmanager
def opened(tunnel: Tunnel, *, target: Target) -> Iterator[None]:
    """Keep a tunnel open."""
    with subprocess.Popen(
        [*target.kubectl_words, *tunnel.words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _wait_until_open(process, local_port=tunnel.local_port)
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_open(process: "subprocess.Popen[str]", *, local_port: int) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            said = process.stderr.read().strip() if process.stderr else ""
            raise DemoError(f"port {local_port} cannot be forwarded: {said}")
        with suppress(OSError), socket.create_connection(("localhost", local_port), timeout=1):
            return
        time.sleep(0.2)
    raise DemoError(f"the port-forward on port {local_port} did not open in {_START_SECONDS:.0f} s")
