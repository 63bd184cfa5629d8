"""The bare API server that other integration tests start: it serves, and leaves nothing behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CLUSTER = Path(__file__).resolve().parents[2] / "cluster" / "cluster.py"
STOP_SECONDS = 30.0

Server = subprocess.Popen[str]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with subprocess.Popen(
        [sys.executable, str(CLUSTER), "api-server", "--dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def ready_kubeconfig(server: Server) -> str:
    assert server.stdout is not None
    word, _, path = server.stdout.readline().strip().partition(" ")
    assert word == "ready"
    return path


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + STOP_SECONDS
    while not condition():
        assert time.monotonic() < end, "the condition was not reached in time"
        time.sleep(0.05)


def test_it_serves_and_issues_tokens_for_an_audience(server: Server, kubectl_program: Path) -> None:
    kubectl = [str(kubectl_program), f"--kubeconfig={ready_kubeconfig(server)}"]
    subprocess.run([*kubectl, "create", "serviceaccount", "trainer"], check=True)
    token = subprocess.run(
        [*kubectl, "create", "token", "trainer", "--audience=anneal.dev/job/1"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert token.stdout.count(".") == 2


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="asked to end"),
        pytest.param(signal.SIGINT, id="interrupted at the terminal"),
    ],
)
def test_when_stopped_it_leaves_no_process_and_no_file(
    server: Server, tmp_path: Path, number: signal.Signals
) -> None:
    ready_kubeconfig(server)
    pids = children(server.pid)
    assert len(pids) == 2
    server.send_signal(number)
    assert server.wait(STOP_SECONDS) == 0
    assert not any(is_running(pid) for pid in pids)
    assert list(tmp_path.iterdir()) == []


def test_when_killed_its_programs_die_with_it(server: Server) -> None:
    ready_kubeconfig(server)
    pids = children(server.pid)
    server.kill()
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_when_a_program_dies_it_ends_and_names_it(server: Server, tmp_path: Path) -> None:
    ready_kubeconfig(server)
    etcd = min(children(server.pid))
    subprocess.run(["kill", "-KILL", str(etcd)], check=True)
    assert server.wait(STOP_SECONDS) == 1
    assert list(tmp_path.iterdir()) == []
