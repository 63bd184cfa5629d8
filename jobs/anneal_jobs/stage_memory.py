"""Memory from a baseline through every stage of a run, and a word when it gets close to the limit.

A run that dies for want of memory leaves no message of its own: what it held at the end of each
stage, and how near the limit it was, has to be told before. Processes are measured by their
resident set, the container by its working set (what the kubelet evicts and the kernel kills by),
accelerators by PyTorch's own counters, because its pool makes those of the driver misleading.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from anneal_pipeline.memory.allocator import TIGHT_SHARE, return_freed_blocks
from anneal_pipeline.memory.room import (
    CGROUP_ROOT,
    container_limit,
    container_working_set,
    resident_bytes,
)

STAGE_START = "start"
NEAR_LIMIT_SHARE = 0.9
_MEGABYTE = 1e6
_GIBIBYTE = 1 << 30


@dataclass(frozen=True, kw_only=True)
class MemoryReading:
    """One moment; bytes, and zeros for an accelerator where there is none."""

    stage: str
    timestamp: float
    """Unix time, seconds."""
    process_bytes: int
    process_peak_bytes: int
    """Since the process began."""
    host_used_bytes: int
    """Of the container where it is limited, else of the machine."""
    host_limit_bytes: int
    accelerator_allocated_bytes: int = 0
    accelerator_peak_bytes: int = 0
    accelerator_reserved_bytes: int = 0
    accelerator_total_bytes: int = 0

    @property
    def accelerator_free_bytes(self) -> int:
        return self.accelerator_total_bytes - self.accelerator_reserved_bytes

    def metrics(self) -> dict[str, float]:
        """Points for the run's charts, in megabytes; memory/peak is that of the whole attempt."""
        values = {
            "process": self.process_bytes,
            "process_peak": self.process_peak_bytes,
            "host_used": self.host_used_bytes,
        }
        if self.accelerator_total_bytes:
            values["accelerator"] = self.accelerator_allocated_bytes
            values["accelerator_peak"] = self.accelerator_peak_bytes
        peaks = {"process": self.process_peak_bytes}
        if self.accelerator_total_bytes:
            peaks["accelerator"] = self.accelerator_peak_bytes
        named = {f"{self.stage}/{name}": value for name, value in values.items()}
        named |= {f"peak/{name}": value for name, value in peaks.items()}
        return {f"memory/{name}_megabytes": value / _MEGABYTE for name, value in named.items()}


class StageMemory:
    """Takes a reading whenever a stage ends; the first one, before any model, is the baseline."""

    def __init__(
        self,
        *,
        num_processes: int,
        on_reading: Callable[[MemoryReading], None],
        on_near_limit: Callable[[str], None],
    ) -> None:
        self._num_processes = num_processes
        self._on_reading = on_reading
        self._on_near_limit = on_near_limit
        self._stage = STAGE_START
        self._has_warned = False
        self._is_tight = False

    def enter(self, stage: str) -> None:
        """Close the stage before, if this is another one."""
        if stage == self._stage:
            return
        reading = read_memory(self._stage)
        self._stage = stage
        self._on_reading(reading)
        self.watch(reading)

    def watch(self, reading: MemoryReading | None = None) -> None:
        """Hold the heap tight once memory is short; warn once when it comes close to its end."""
        if self._is_tight and self._has_warned:
            return
        reading = reading or read_memory(self._stage)
        if not self._is_tight and is_short(reading, num_processes=self._num_processes):
            self._is_tight = True
            return_freed_blocks()
        if self._has_warned:
            return
        warning = near_limit(reading)
        if warning is not None:
            self._has_warned = True
            self._on_near_limit(warning)


def is_short(reading: MemoryReading, *, num_processes: int) -> bool:
    """Whether so many processes like this one, holes of their heaps included, may outgrow it."""
    return num_processes * reading.process_bytes > TIGHT_SHARE * reading.host_limit_bytes > 0


def near_limit(reading: MemoryReading) -> str | None:
    """A sentence with numbers and the remedy, where over nine tenths of some memory are used."""
    places = (
        ("The container", reading.host_used_bytes, reading.host_limit_bytes),
        (
            "The accelerator",
            reading.accelerator_peak_bytes,
            reading.accelerator_total_bytes,
        ),
    )
    for place, used, limit in places:
        if limit and used > NEAR_LIMIT_SHARE * limit:
            return (
                f"{place} has used {used / _GIBIBYTE:.1f} of {limit / _GIBIBYTE:.1f} GiB "
                f"({used / limit:.0%}) in stage {reading.stage}; a longer row may not fit: lower "
                "training.microBatchSize or training.sequenceLength, set "
                "training.gradientCheckpointing, or ask for more memory"
            )
    return None


def read_memory(stage: str, *, cgroup_root: Path = CGROUP_ROOT) -> MemoryReading:
    used, limit = _host(cgroup_root)
    return MemoryReading(
        stage=stage,
        timestamp=time.time(),
        process_bytes=resident_bytes(),
        process_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        host_used_bytes=used,
        host_limit_bytes=limit,
        **_accelerator(),
    )


def describe(reading: MemoryReading) -> dict[str, object]:
    """For a log line or a file."""
    return {**asdict(reading), "accelerator_free_bytes": reading.accelerator_free_bytes}


def _host(root: Path) -> tuple[int, int]:
    """Working set and limit of the container, or use and size of the machine."""
    limit, used = container_limit(root), container_working_set(root)
    if limit is None or used is None:
        machine = psutil.virtual_memory()
        return machine.used, machine.total
    return used, limit


def _accelerator() -> dict[str, int]:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    device = torch.cuda.current_device()
    return {
        "accelerator_allocated_bytes": torch.cuda.memory_allocated(device),
        "accelerator_peak_bytes": torch.cuda.max_memory_allocated(device),
        "accelerator_reserved_bytes": torch.cuda.memory_reserved(device),
        "accelerator_total_bytes": torch.cuda.get_device_properties(device).total_memory,
    }
