"""The keyed work queue: a key is never worked on twice at once, and no event is lost.

A key that is added while it is being worked on becomes due again when that work is done, once,
however often it was added. Failures of one key are retried with a delay that doubles; other keys
are not held up by it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple


class Key(NamedTuple):
    """`namespace/name` of the object to bring into line."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class WorkQueue:
    """Keys waiting for a worker. Belongs to one event loop; no call blocks but `get`."""

    def __init__(self, *, base_seconds: float = 0.005, cap_seconds: float = 300.0) -> None:
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._order: deque[Key] = deque()
        self._dirty: set[Key] = set()
        self._busy: set[Key] = set()
        self._num_failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._wakers: set[asyncio.Future[None]] = set()

    @property
    def depth(self) -> int:
        """Keys that are due and not yet taken."""
        return len(self._order)

    def add(self, key: Key) -> None:
        """Make `key` due now."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._busy:
            self._enqueue(key)

    def add_after(self, key: Key, *, seconds: float) -> None:
        """Make `key` due later; of several such calls the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        due_at = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due_at:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due_at, self._fire, key)

    def add_failed(self, key: Key, *, at_least: float | None = None) -> float:
        """Make `key` due again after a delay that doubles with each failure; return the delay."""
        num_failures = self._num_failures.get(key, 0)
        self._num_failures[key] = num_failures + 1
        delay = min(self._cap_seconds, self._base_seconds * 2.0 ** min(num_failures, 40))
        delay = max(delay, at_least or 0.0)
        self.add_after(key, seconds=delay)
        return delay

    def forget(self, key: Key) -> None:
        """The key succeeded: its next failure starts from the shortest delay again."""
        self._num_failures.pop(key, None)

    async def get(self) -> Key:
        """Take the next key. The caller must call `done` for it, whatever happens."""
        while not self._order:
            waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._wakers.add(waker)
            try:
                await waker
            except asyncio.CancelledError:
                if waker.done() and not waker.cancelled():
                    # We were woken for a key and die before taking it: pass the call on.
                    self._wake()
                raise
            finally:
                self._wakers.discard(waker)
        key = self._order.popleft()
        self._dirty.discard(key)
        self._busy.add(key)
        return key

    def done(self, key: Key) -> None:
        """The work on `key` has ended, well or badly."""
        self._busy.discard(key)
        if key in self._dirty:
            self._enqueue(key)

    def _enqueue(self, key: Key) -> None:
        self._order.append(key)
        self._wake()

    def _wake(self) -> None:
        for waker in self._wakers:
            if not waker.done():
                waker.set_result(None)
                return

    def _fire(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)
