"""The test cluster, as the tests reach it: kubectl and helm, and the processes of its pods."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

REPOSITORY = Path(__file__).resolve().parents[3]
CLUSTER_PROGRAM = REPOSITORY / "tests" / "cluster" / "cluster.py"
STATE = (
    Path(os.environ.get("ANNEAL_STATE") or Path.home() / ".local" / "state" / "anneal") / "cluster"
)
NODE_ADDRESS = "198.18.0.1"
POLL_SECONDS = 2.0
"""Each look is a kubectl of its own, and many jobs are looked at from the same two processors."""

Found = TypeVar("Found")

Object = dict[str, Any]
"""A Kubernetes object, as kubectl prints it."""


class CommandFailedError(Exception):
    """A program ended badly; the message holds what it said."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    programs: Path
    kubeconfig: Path

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = [str(self.programs / "kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        return run(command, stdin=stdin)

    def helm(self, *arguments: str, values: Object | None = None) -> str:
        command = [str(self.programs / "helm"), f"--kubeconfig={self.kubeconfig}", *arguments]
        if values is None:
            return run(command)
        # JSON is YAML; helm reads values from standard input where the file is called "-".
        return run([*command, "--values=-"], stdin=json.dumps(values))

    def apply(self, *objects: Object) -> None:
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl(
            "apply", "--server-side", "--force-conflicts", "--filename=-", stdin=json.dumps(bundle)
        )

    def get(self, kind: str, name: str, *, namespace: str) -> Object:
        found: Object = json.loads(
            self.kubectl("get", kind, name, f"--namespace={namespace}", "--output=json")
        )
        return found

    def items(self, kind: str, *, namespace: str | None = None, labels: str = "") -> list[Object]:
        where = ["--all-namespaces"] if namespace is None else [f"--namespace={namespace}"]
        found = self.kubectl("get", kind, *where, f"--selector={labels}", "--output=json")
        items: list[Object] = json.loads(found)["items"]
        return items


def run(command: list[str], *, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailedError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def run_cluster_program(*arguments: str) -> str:
    """Call tests/cluster/cluster.py; what it says on the way goes to the terminal."""
    done = subprocess.run(
        [sys.executable, str(CLUSTER_PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CommandFailedError(f"cluster.py {' '.join(arguments)} failed; see above")
    return done.stdout


def wait_for(what: str, probe: Callable[[], Found | None], *, seconds: float) -> Found:
    """Return the first result of `probe` that is not None; raise TimeoutError after `seconds`."""
    end = time.monotonic() + seconds
    while (found := probe()) is None:
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")
        time.sleep(POLL_SECONDS)
    return found


def kill_container(pod: Object, *, program: str) -> None:
    """SIGKILL a program of a pod from outside, as the kernel's out-of-memory killer would."""
    uid = pod["metadata"]["uid"]
    pids = [pid for pid in _processes_of(uid) if program in _command_of(pid)]
    if not pids:
        raise ProcessLookupError(f"pod {pod['metadata']['name']} runs no {program}")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def _processes_of(pod_uid: str) -> list[int]:
    names = (pod_uid, pod_uid.replace("-", "_"))
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            groups = (folder / "cgroup").read_text()
        except OSError:
            continue
        if any(name in groups for name in names):
            found.append(int(folder.name))
    return found


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
