"""A token bucket for writes: it guards young clusters, and everybody from our own mistakes.

API Priority and Fairness protects the server from many clients; this protects it from one loop of
ours that has gone wrong. Waiters are served in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class TokenBucket:
    """`rate` tokens a second, at most `burst` saved up."""

    def __init__(self, *, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._tokens = float(burst)
        self._filled_at = clock()

    async def take(self) -> None:
        """Wait until a write is allowed, then use up one token.

        The balance may go below zero: each waiter owes its own token, so that two waiters never
        wake for the same one.
        """
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        self._tokens -= 1
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._rate)
