"""The worker loop: takes keys, reconciles them, and decides what a failure means.

Transient failures and conflicts go back to the queue with a delay that doubles; anything unforeseen
does too, with its traceback in the log. This is the only place in the operator that catches
`Exception`: one job's bug must not stop the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from anneal_operator.errors import TRANSIENT, ChildRefused, Conflict, KubeError, OperatorError
from anneal_operator.logs import log_event
from anneal_operator.metrics import Metrics
from anneal_operator.workqueue import Key, WorkQueue

RECONCILE_SECONDS = 120.0
"""A reconcile that takes longer is cut off: it hangs on something."""

logger = logging.getLogger(__name__)

Reconcile = Callable[[Key], Awaitable[float | None]]
"""Bring one object into line; return after how many seconds to look again, or None."""


@dataclass(frozen=True, slots=True)
class Controller:
    """Several workers on one queue."""

    name: str
    queue: WorkQueue
    reconcile: Reconcile
    metrics: Metrics
    num_workers: int

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(self.num_workers):
                workers.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                await self._one(key)
            finally:
                self.queue.done(key)

    async def _one(self, key: Key) -> None:
        try:
            with self.metrics.reconcile_seconds.labels(self.name).time():
                async with asyncio.timeout(RECONCILE_SECONDS):
                    again_seconds = await self.reconcile(key)
        except Exception as error:
            self._failed(key, error)
            return
        self.metrics.reconciles.labels(self.name, "success").inc()
        self.queue.forget(key)
        if again_seconds is not None:
            self.queue.add_after(key, seconds=again_seconds)

    def _failed(self, key: Key, error: Exception) -> None:
        asked = error.retry_after_seconds if isinstance(error, KubeError) else None
        delay = self.queue.add_failed(key, at_least=asked)
        expected = isinstance(error, (*TRANSIENT, ChildRefused, Conflict))
        self.metrics.reconciles.labels(self.name, "retry" if expected else "error").inc()
        log_event(
            logger,
            "reconcile_failed",
            level=logging.DEBUG if isinstance(error, Conflict) else logging.ERROR,
            exc_info=not isinstance(error, OperatorError),
            controller=self.name,
            namespace=key.namespace,
            name=key.name,
            error=str(error),
            retry_seconds=round(delay, 3),
        )


async def resync(
    *, queue: WorkQueue, keys: Callable[[], tuple[Key, ...]], interval_seconds: float
) -> None:
    """Make every key due once in each interval, spread evenly over it. Runs until cancelled."""
    while True:
        due = keys()
        if not due:
            await asyncio.sleep(interval_seconds)
        for key in due:
            await asyncio.sleep(interval_seconds / len(due))
            queue.add(key)
