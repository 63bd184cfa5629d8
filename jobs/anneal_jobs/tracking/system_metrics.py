"""Load of the machine, under the names MLflow's own charts look for (`system/...`)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psutil

from anneal_jobs.tracking.gpu_metrics import GpuSampler
from anneal_jobs.tracking.writer import RunWriter

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 10.0
_MEGABYTE = 1e6


class SystemSampler:
    """Samples on a thread; points carry the training step of their moment."""

    def __init__(
        self,
        writer: RunWriter,
        *,
        step: Callable[[], int],
        interval_seconds: float = SAMPLE_SECONDS,
    ) -> None:
        self._writer = writer
        self._step = step
        self._interval_seconds = interval_seconds
        self._gpus: GpuSampler | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def start(self) -> None:
        """Begin; a machine that cannot be read costs its readings and never the attempt."""
        try:
            self._gpus = GpuSampler.open()
            psutil.cpu_percent()  # Only sets the mark that the next call measures from.
            self._thread.start()
        except Exception as error:  # whatever a driver or the system answers
            log.warning("no readings of this machine's load: %s", error)

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._interval_seconds)
        if self._gpus is not None:
            self._gpus.close()

    def _run(self) -> None:
        """Read after each interval, and once more at the end: a short run has a reading too."""
        is_closing = False
        while not is_closing:
            is_closing = self._closing.wait(self._interval_seconds)
            reading = sample()
            if self._gpus is not None:
                reading |= self._gpus.sample()
            self._writer.add(reading, step=self._step(), is_always_sent=True)


def sample() -> dict[str, float]:
    """One reading of processor, memory, disk and network."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage("/")
    network = psutil.net_io_counters()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / _MEGABYTE,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / _MEGABYTE,
        "system/disk_usage_megabytes": disk.used / _MEGABYTE,
        "system/disk_usage_percentage": disk.percent,
        "system/network_receive_megabytes": network.bytes_recv / _MEGABYTE,
        "system/network_transmit_megabytes": network.bytes_sent / _MEGABYTE,
    }
