"""How much memory there is, without torch."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
_KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Room:
    """What one rank may take."""

    limit: int | None
    """Bytes; None where it is not known."""
    libraries: int
    """Bytes of it that the interpreter and the libraries hold before a model is loaded."""
    others: int = 0
    """Bytes of it that other processes of the pod will hold: this rank's share of Ray."""
    on_gpu: bool = False

    @property
    def taken(self) -> int:
        return self.libraries + self.others

    @property
    def free(self) -> int | None:
        return None if self.limit is None else self.limit - self.taken


def room_on_cpu(*, num_processes: int, cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> Room:
    """The room of this process, where it shares what is free now with others like it.

    What other processes of the container hold already (Ray's in a pod) is no longer free.
    """
    resident = resident_bytes(proc=proc)
    free = _least((_container_free_bytes(cgroup_root), _available_bytes(proc)))
    limit = None if free is None else free // num_processes + resident
    return Room(limit=limit, libraries=resident)


def limit_on_cpu(*, cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> int | None:
    """Bytes that a container like this, or this process, may hold in all; None: nothing tells.

    The limit of the container, or what the machine has available beside what is held already.
    """
    available = _available_bytes(proc)
    beside = None if available is None else available + resident_bytes(proc=proc)
    return _least((container_limit(cgroup_root), beside))


def resident_bytes(*, proc: Path = PROC) -> int:
    """What this process holds now."""
    path = proc / "self" / "statm"
    return int(path.read_text().split()[1]) * resource.getpagesize() if path.is_file() else 0


def container_limit(root: Path = CGROUP_ROOT) -> int | None:
    """Bytes by cgroup v2 or v1; None where there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = root / name
        if path.is_file():
            text = path.read_text().strip()
            # cgroup v1 says a number near 2^63 where there is no limit.
            return int(text) if text.isdigit() and int(text) < 1 << 60 else None
    return None


def container_working_set(root: Path = CGROUP_ROOT) -> int | None:
    """Bytes that the container holds and the kernel cannot simply drop; None where nothing tells.

    That is what the kubelet evicts by: the use without file pages that were not used lately.
    """
    for usage, statistics, inactive in (
        ("memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        if (root / usage).is_file():
            droppable = _field((root / statistics).read_text().splitlines(), inactive) or 0
            return max(0, int((root / usage).read_text()) - droppable)
    return None


def _container_free_bytes(root: Path) -> int | None:
    limit, used = container_limit(root), container_working_set(root)
    return None if limit is None or used is None else max(0, limit - used)


def _available_bytes(proc: Path) -> int | None:
    return field_bytes(proc / "meminfo", "MemAvailable:")


def field_bytes(path: Path, name: str) -> int | None:
    """A field of one of the kernel's tables in kB; None where there is none."""
    if not path.is_file():
        return None
    kibibytes = _field(path.read_text().splitlines(), name)
    return None if kibibytes is None else kibibytes * _KIB


def _field(lines: Iterable[str], name: str) -> int | None:
    """The number after a name, in the kernel's tables."""
    words = (line.split() for line in lines)
    return next((int(found[1]) for found in words if found and found[0] == name), None)


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
