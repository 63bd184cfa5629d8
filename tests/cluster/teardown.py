"""Removes all that `up` and the pods made, also after an `up` that was killed half-way.

Everything is found by what it is (a record, a place below the state folder, a name of ours), and
nothing of another cluster on the machine is touched. Pods are not asked to end: their data is
thrown away with them.
"""

import ctypes
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from commands import run, succeeds
from errors import ClusterError
from network import CNI_NETWORK, take_down_network
from places import Places
from processes import kill, stop
from steps import say, step

# Those that would start or restart something go first.
_STOP_ORDER = (
    "kubelet",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "coredns",
    "containerd",
    "kube-apiserver",
    "etcd",
)
_GRACE_SECONDS = 10.0
_CGROUPS = Path("/sys/fs/cgroup")
_POD_CGROUP = "kubepods"
_MNT_DETACH = 2
_PROXY_FAMILIES = ("ip", "ip6")
_STRAY_FOLDERS = (
    "/var/lib/cni/results",
    "/var/lib/cni/cache",
    "/var/lib/cni",
    "/var/log/containers",
    "/var/lib/kubelet/device-plugins",
    "/var/lib/kubelet",
    "/run/containerd/s",
    "/run/containerd",
)


def take_down(*, places: Places) -> None:
    """Stop and remove everything; says so when there is nothing."""
    if not places.state.exists():
        say("  there is no cluster to take down")
        return
    with step("stopping the components"):
        for name in _STOP_ORDER:
            stop(places.records / name, grace_seconds=_GRACE_SECONDS)
    sockets = _shim_sockets(places)
    if (places.state / "kubelet").exists():
        with step("ending the pods"):
            _end_pods(places)
    with step("unmounting"):
        _unmount_below(places.state)
    with step("removing cgroups, interfaces, tables and files"):
        _remove_pod_cgroups(places)
        _remove_proxy_tables(places)
        take_down_network(places=places)
        _remove_strays([*sockets, *_node_strays(places)])
        shutil.rmtree(places.state)
    say(f"  the cluster is down; programs, images and packages stay in {places.cache}")


def _end_pods(places: Places) -> None:
    """Kill the shims of our containerd first, so that none reacts, then all that pods run."""
    end = time.monotonic() + _GRACE_SECONDS
    while (alive := [*_shims(places), *_pod_processes()]) and time.monotonic() < end:
        for pid in alive:
            kill(pid)
        time.sleep(0.05)


def _shims(places: Places) -> list[int]:
    """Processes whose program is our cached shim and whose arguments name our containerd."""
    marker = f"\0{places.containerd_socket}\0".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            program, arguments = os.readlink(folder / "exe"), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if program.startswith(f"{places.bin}/containerd-shim-") and marker in arguments:
            found.append(int(folder.name))
    return found


def pod_cgroups() -> list[Path]:
    """Every cgroup of pods, deepest first, over all hierarchies of cgroup v1 or the one of v2."""
    tops = [*_CGROUPS.glob(_POD_CGROUP), *_CGROUPS.glob(f"*/{_POD_CGROUP}")]
    folders = [folder for top in tops for folder in (top, *top.rglob("*")) if folder.is_dir()]
    return sorted(folders, key=lambda folder: len(folder.parts), reverse=True)


def _pod_processes() -> list[int]:
    pids: set[int] = set()
    for folder in pod_cgroups():
        try:
            pids.update(int(word) for word in (folder / "cgroup.procs").read_text().split())
        except OSError:
            continue
    return sorted(pids)


def _remove_pod_cgroups(places: Places) -> None:
    if not (places.state / "kubelet").exists():
        return
    end = time.monotonic() + _GRACE_SECONDS
    for folder in pod_cgroups():
        while folder.exists():
            try:
                folder.rmdir()
            except OSError:
                # The kernel lets go of a killed process's cgroup a moment later.
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)


def _unmount_below(folder: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for mount in reversed(mounts_below(folder, Path("/proc/self/mountinfo").read_text())):
        if libc.umount2(mount.encode(), _MNT_DETACH) != 0:
            # Going on would delete through the mount.
            raise ClusterError(f"cannot unmount {mount}: {os.strerror(ctypes.get_errno())}")


def mounts_below(folder: Path, mountinfo: str) -> list[str]:
    """The mount points below a folder, in the order they were made.

    The kernel writes a space, tab, newline or backslash in a path as an octal escape.
    """
    points = [line.split()[4] for line in mountinfo.splitlines()]
    plain = [point.encode().decode("unicode_escape") for point in points]
    return [point for point in plain if point.startswith(f"{folder}/")]


def _remove_proxy_tables(places: Places) -> None:
    if not (places.config / "kube-proxy.json").exists():
        return
    for family in _PROXY_FAMILIES:
        if succeeds(["nft", "list", "table", family, "kube-proxy"]):
            run(["nft", "delete", "table", family, "kube-proxy"])


def _shim_sockets(places: Places) -> list[Path]:
    """The shims' sockets lie in a folder that all containerds share; each task notes its own."""
    tasks = places.state / "containerd" / "state" / "io.containerd.runtime.v2.task"
    notes = [json.loads(path.read_text()) for path in tasks.glob("*/*/bootstrap.json")]
    return [Path(str(note["address"]).removeprefix("unix://")) for note in notes]


def _node_strays(places: Places) -> list[Path]:
    """What the CNI library and the kubelet put at fixed places of their own."""
    links = Path("/var/log/containers").glob("*.log")
    ours = [link for link in links if os.readlink(link).startswith(f"{places.state}/")]
    results = Path("/var/lib/cni/results").glob(f"{CNI_NETWORK}-*")
    # A machine has one kubelet: `up` refuses beside another, so these are ours.
    return [*ours, *results, *Path("/var/lib/kubelet/device-plugins").glob("*")]


def _remove_strays(strays: Sequence[Path]) -> None:
    for path in strays:
        path.unlink(missing_ok=True)
    for folder in _STRAY_FOLDERS:
        _remove_if_empty(Path(folder))


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
