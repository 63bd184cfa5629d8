"""How much memory this process may still take, without torch."""

from __future__ import annotations

import resource
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
_KIB = 1024


def room_on_cpu(*, cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> int | None:
    """Bytes below the limit of this container, and of the machine; None where neither is told.

    Under a container's limit what others of it hold is not known to be needed for long, so only
    this process's own resident set is taken off.
    """
    rooms = []
    limit = _limit(cgroup_root)
    if limit is not None:
        rooms.append(limit - _resident_bytes(proc))
    available = _available_bytes(proc)
    if available is not None:
        rooms.append(available)
    return max(0, min(rooms)) if rooms else None


def _limit(cgroup_root: Path) -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = cgroup_root / name
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


def _resident_bytes(proc: Path) -> int:
    path = proc / "self" / "statm"
    return int(path.read_text().split()[1]) * resource.getpagesize() if path.is_file() else 0
