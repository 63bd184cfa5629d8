"""How much memory there is, without torch."""

from __future__ import annotations

import resource
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
_KIB = 1024


def limit_on_cpu(*, cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> int | None:
    """Bytes that this process may hold in all; None where nothing tells.

    The limit of the container, or what the machine has available beside what is held already.
    """
    limits = []
    limit = container_limit(cgroup_root)
    if limit is not None:
        limits.append(limit)
    available = _available_bytes(proc)
    if available is not None:
        limits.append(available + resident_bytes(proc=proc))
    return min(limits) if limits else None


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


def _available_bytes(proc: Path) -> int | None:
    path = proc / "meminfo"
    if not path.is_file():
        return None
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return int(value.split()[0]) * _KIB
    return None
