"""A real API server with its etcd and nothing else, on free loopback ports, for integration tests.

It belongs to one foreground process: when that ends, in whatever way, both programs end, and
what it wrote is removed unless it was killed outright. There is no controller
manager: nothing makes default service accounts, pods or garbage collection happen, and the
admission plugin that would demand a pod's service account is off.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from builds import build, program_path
from certificates import Pair, issue, make_authority, new_key
from control_plane import Endpoint, Trust, api_server_arguments, etcd_arguments
from health import answers, wait_until_well
from kubeconfigs import write_kubeconfig
from places import Places

_LOOPBACK = "127.0.0.1"
_SERVICES = "10.96.0.0/16"
_PR_SET_PDEATHSIG = 1
_START_SECONDS = 120.0
_STOP_SECONDS = 10.0


class Stopped(BaseException):
    """A signal asked us to end; not an Exception so that nothing on the way swallows it."""


@dataclass(frozen=True)
class Child:
    """One of the two programs."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def alive(self) -> bool:
        return self.process.poll() is None


def serve_api(folder: Path, *, places: Places) -> None:
    """Run until SIGTERM, SIGINT or the death of a child; print `ready KUBECONFIG` once up."""
    build(["etcd", "kube-apiserver"], places=places)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="api-server-", dir=folder.absolute()))
    children: list[Child] = []
    try:
        kubeconfig = _start(work, places=places, children=children)
        sys.stdout.write(f"ready {kubeconfig}\n")
        sys.stdout.flush()
        _wait_for_end(children)
    except Stopped:
        return
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        _end(children)
        shutil.rmtree(work, ignore_errors=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def _start(work: Path, *, places: Places, children: list[Child]) -> Path:
    clients, peers, serving = (Endpoint(_LOOPBACK, port) for port in _free_ports(3))
    trust = _trust(work / "certificates")
    etcd = _spawn(
        "etcd",
        etcd_arguments(data=work / "etcd", clients=clients, peers=peers, trust=trust),
        work=work,
        places=places,
    )
    children.append(etcd)
    arguments = api_server_arguments(
        serving=serving,
        etcd=clients,
        services=_SERVICES,
        certificates=work / "certificates",
        trust=trust,
    )
    api_server = _spawn(
        "kube-apiserver",
        [*arguments, "--disable-admission-plugins=ServiceAccount"],
        work=work,
        places=places,
    )
    children.append(api_server)
    wait_until_well(
        api_server.name,
        check=lambda: answers(f"{serving.url}/readyz", authority=trust.authority.certificate),
        alive=lambda: etcd.alive() and api_server.alive(),
        log=api_server.log,
        seconds=_START_SECONDS,
    )
    return write_kubeconfig(
        work / "kubeconfig",
        server=serving.url,
        authority=trust.authority.certificate,
        user=trust.client,
    )


def _trust(folder: Path) -> Trust:
    authority = make_authority(folder)

    def pair(name: str, subject: str) -> Pair:
        return issue(
            name,
            subject=subject,
            addresses=(_LOOPBACK, "localhost"),
            folder=folder,
            authority=authority,
        )

    key = folder / "service-account.key"
    new_key(key)
    return Trust(
        authority=authority,
        server=pair("server", "/CN=server"),
        client=pair("admin", "/O=system:masters/CN=admin"),
        service_account_key=key,
    )


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; held open together so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((_LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _spawn(name: str, arguments: Sequence[str], *, work: Path, places: Places) -> Child:
    log = work / f"{name}.log"
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program_path(name, places=places)), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=work,
            env=dict(os.environ),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    return Child(name=name, process=process, log=log)


def _wait_for_end(children: Sequence[Child]) -> None:
    """Sleep until a signal raises Stopped, or a child dies on its own (its log is told)."""
    pause = threading.Event()
    while all(child.alive() for child in children):
        pause.wait(0.5)
    dead = next(child for child in children if not child.alive())
    wait_until_well(
        dead.name, check=lambda: "it ended", alive=lambda: False, log=dead.log, seconds=0.0
    )


def _end(children: Sequence[Child]) -> None:
    for child in reversed(children):
        child.process.terminate()
        try:
            child.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
