"""The wish to stop, from a signal to every rank, and the time there is for it.

The kubelet signals PID 1 only and kills after the grace period; what has to be said must be said
before that. `StopRequest` therefore tells the driver when to give up waiting for the ranks.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from pathlib import Path
from types import FrameType

log = logging.getLogger(__name__)

RESERVE_SECONDS = 10.0
"""Kept of the grace period for the outcome and the logs."""


class StopRequest:
    def __init__(self, stop_file: Path, *, grace_seconds: float) -> None:
        self._stop_file = stop_file
        self._grace_seconds = grace_seconds
        self._deadline: float | None = None
        self._set = threading.Event()

    def install(self) -> None:
        """Take SIGTERM and SIGINT; call again after anything that replaces handlers."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    @property
    def is_set(self) -> bool:
        return self._set.is_set()

    @property
    def is_overdue(self) -> bool:
        """True when the ranks have had their time and the rest is needed for the outcome."""
        return self._deadline is not None and time.monotonic() > self._deadline - RESERVE_SECONDS

    @property
    def remaining_seconds(self) -> float:
        """Until the kubelet kills; without limit where no stop was asked for."""
        if self._deadline is None:
            return float("inf")
        return max(0.0, self._deadline - time.monotonic())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + self._grace_seconds
        self._stop_file.touch()
        self._set.set()
