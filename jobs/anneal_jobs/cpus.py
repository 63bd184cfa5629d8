"""How many processors this container may use; the kernel shows those of the whole node."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def count_cpus(*, cgroup_root: Path = CGROUP_ROOT) -> int:
    """The CPU limit of the container rounded up, or the processors this process may run on."""
    affinity = len(os.sched_getaffinity(0))
    quota = _quota(cgroup_root)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def _quota(root: Path) -> float | None:
    """CPUs granted by cgroup v2 or v1; None where there is no limit."""
    try:
        limit, period = (root / "cpu.max").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return _quota_v1(root / "cpu")
    return None if limit == "max" else int(limit) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    return None if limit <= 0 else limit / period
