"""Metric points that MLflow has not acknowledged yet.

A point keeps the timestamp of its first appearance: MLflow stores an identical point once, so
sending it again after a lost answer or a restart changes nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

CAPACITY = 200_000
"""Points held during an outage; at about ten per step, 20,000 steps."""


@dataclass(frozen=True, kw_only=True)
class Point:
    key: str
    value: float
    step: int
    timestamp_ms: int
    is_always_sent: bool = False
    """True for points that may repeat a step of an earlier attempt: replayed and system points."""


class Spool:
    """A bounded, thread-safe queue that forgets a point only when told that it has arrived."""

    def __init__(self, *, capacity: int = CAPACITY) -> None:
        self._points: deque[Point] = deque()
        self._capacity = capacity
        self._lock = threading.Lock()
        self.num_dropped = 0
        """Points given up because the spool was full: the oldest go first."""

    def __len__(self) -> int:
        return len(self._points)

    def add(self, points: Sequence[Point]) -> None:
        with self._lock:
            self._points.extend(points)
            while len(self._points) > self._capacity:
                self._points.popleft()
                self.num_dropped += 1

    def oldest(self, count: int) -> list[Point]:
        with self._lock:
            return list(islice(self._points, count))

    def acknowledge(self, points: Sequence[Point]) -> None:
        """Forget points that have arrived."""
        arrived = set(points)
        with self._lock:
            while self._points and self._points[0] in arrived:
                self._points.popleft()

    def to_state(self) -> list[list[Any]]:
        """JSON rows to keep in a checkpoint."""
        with self._lock:
            return [[p.key, p.value, p.step, p.timestamp_ms] for p in self._points]

    def replay(self, rows: Sequence[Sequence[Any]]) -> None:
        """Put points of an earlier attempt before all others."""
        points = [
            Point(
                key=str(key),
                value=float(value),
                step=int(step),
                timestamp_ms=int(timestamp_ms),
                is_always_sent=True,
            )
            for key, value, step, timestamp_ms in rows
        ]
        with self._lock:
            self._points.extendleft(reversed(points))


def points_of(
    values: Mapping[str, float], *, step: int, timestamp_ms: int, is_always_sent: bool = False
) -> list[Point]:
    return [
        Point(
            key=key,
            value=float(value),
            step=step,
            timestamp_ms=timestamp_ms,
            is_always_sent=is_always_sent,
        )
        for key, value in values.items()
    ]
