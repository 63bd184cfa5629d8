"""Exponential backoff with full jitter, reset only after a stretch of good health.

Resetting on the first success would let a server that accepts and drops connections be hammered.
"""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays of at most 0.8, 1.6, 3.2 ... seconds, up to a cap; each one drawn at random."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        base_seconds: float = 0.8,
        cap_seconds: float = 12.0,
        reset_after_seconds: float = 120.0,
    ) -> None:
        self._clock = clock
        self._random = random
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._reset_after_seconds = reset_after_seconds
        self._num_failures = 0
        self._last_failure_at: float | None = None

    def next_delay_seconds(self, *, at_least: float | None = None) -> float:
        """The wait before the next try. `at_least` is what the server asked for (Retry-After)."""
        now = self._clock()
        last = self._last_failure_at
        if last is not None and now - last > self._reset_after_seconds:
            self._num_failures = 0
        ceiling = min(self._cap_seconds, self._base_seconds * 2.0 ** min(self._num_failures, 30))
        self._num_failures += 1
        self._last_failure_at = now
        delay = ceiling * self._random()
        # A draw of nearly zero must not become a hot loop.
        return max(delay, self._base_seconds / 8, at_least or 0.0)
