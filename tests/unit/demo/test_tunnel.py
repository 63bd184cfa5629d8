"""A port-forward is waited for, and ended with what needed it."""

import socket
import sys
from pathlib import Path

import pytest

from failure import DemoError
from target import Target
from tunnel import Tunnel, opened

FORWARDING = """
import socket, sys, time
from pathlib import Path
Path({log!r}).write_text(" ".join(sys.argv[1:]))
listening = socket.create_server(("localhost", int(sys.argv[-1].split(":")[0])))
time.sleep(60)
"""
REFUSING = "import sys; sys.exit('error: services \"mlflow\" not found')"


def target(tmp_path: Path, program: str) -> Target:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"#!{sys.executable}\n{program}")
    kubectl.chmod(0o755)
    return Target(kubectl_program=kubectl, helm_program=kubectl, kubeconfig=None, context="mine")


@pytest.fixture
def tunnel() -> Tunnel:
    with socket.create_server(("localhost", 0)) as found:
        port: int = found.getsockname()[1]
    return Tunnel(namespace="anneal", service="mlflow", local_port=port, port=5000)


def test_it_is_open_while_it_is_needed(tmp_path: Path, tunnel: Tunnel) -> None:
    log = tmp_path / "words"
    with opened(tunnel, target=target(tmp_path, FORWARDING.format(log=str(log)))):
        socket.create_connection(("localhost", tunnel.local_port)).close()
    with pytest.raises(ConnectionError):
        socket.create_connection(("localhost", tunnel.local_port))
    assert log.read_text() == (
        f"--context=mine --namespace=anneal port-forward service/mlflow {tunnel.local_port}:5000"
    )


def test_what_kubectl_says_of_a_port_that_cannot_be_forwarded_is_told(
    tmp_path: Path, tunnel: Tunnel
) -> None:
    with (
        pytest.raises(DemoError, match='services "mlflow" not found'),
        opened(tunnel, target=target(tmp_path, REFUSING)),
    ):
        pass
