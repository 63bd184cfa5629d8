"""Leader election by a Lease: one replica works, and a leader that is cut off stops in time.

Times as in controller-runtime: lease 15 s, renew deadline 10 s, retry 2 s. Only the local monotonic
clock counts; another replica's lease is judged by when *we* saw its record change. Our own lease is
as old as the moment before the request that renewed it was sent.

A Lease is no fence (client-go says so): what keeps two writers from harm are deterministic child
names and resource-version preconditions. Whoever loses the lease stops its work, waits for it to
stop and leaves the process; the kubelet starts a fresh one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from anneal_operator.errors import AlreadyExists, KubeError, LeadershipLost, NotFound
from anneal_operator.kube import Kube, Object
from anneal_operator.logs import log_event
from anneal_operator.resources import LEASES

LEASE_SECONDS = 15.0
RENEW_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 2.0
ATTEMPT_SECONDS = 5.0

logger = logging.getLogger(__name__)


def micro_time(now: datetime) -> str:
    """A metav1.MicroTime."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(slots=True)
class Elector:
    """One candidate for one Lease."""

    kube: Kube
    """A connection without a write limit: a renewal must never queue behind other writes."""
    namespace: str
    name: str
    identity: str
    clock: Callable[[], float]
    random: Callable[[], float]
    now: Callable[[], datetime]
    labels: dict[str, str] = field(default_factory=dict)
    owner_references: tuple[Object, ...] = ()
    lease_seconds: float = LEASE_SECONDS
    renew_deadline_seconds: float = RENEW_DEADLINE_SECONDS
    retry_seconds: float = RETRY_SECONDS
    holder: str = ""
    """Who held the lease when we last looked; standbys forward to it."""
    renewed_at: float | None = None
    """Clock time before the request that last made or kept us leader; None: not leading."""
    _seen: tuple[str, str] = ("", "")
    _seen_at: float = 0.0

    @property
    def leading(self) -> bool:
        return self.renewed_at is not None

    async def run(self, work: Callable[[], Awaitable[None]], *, stop: asyncio.Event) -> None:
        """Campaign, then work until `stop` is set; `LeadershipLost` if the lease cannot be kept."""
        stopping = asyncio.create_task(stop.wait())
        campaign = asyncio.create_task(self._acquire())
        tasks: set[asyncio.Task[Any]] = {stopping, campaign}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                return
            await campaign
            worker = asyncio.ensure_future(work())
            renewer = asyncio.create_task(self._renew())
            tasks |= {worker, renewer}
            await asyncio.wait({stopping, worker, renewer}, return_when=asyncio.FIRST_COMPLETED)
            for task in (worker, renewer):
                if task.done():
                    await task
            worker.cancel()
            renewer.cancel()
            await asyncio.gather(worker, renewer, return_exceptions=True)
            await self._release()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.renewed_at = None

    async def _acquire(self) -> None:
        while True:
            sent_at = self.clock()
            if await self._attempt(limit_seconds=ATTEMPT_SECONDS):
                self.renewed_at = sent_at
                log_event(logger, "leader_elected", identity=self.identity, lease=self.name)
                return
            await asyncio.sleep(self.retry_seconds * (1 + 0.2 * self.random()))

    async def _renew(self) -> None:
        while self.renewed_at is not None:
            await asyncio.sleep(self.retry_seconds)
            sent_at = self.clock()
            remaining = self.renewed_at + self.renew_deadline_seconds - sent_at
            if remaining > 0 and await self._attempt(limit_seconds=min(remaining, ATTEMPT_SECONDS)):
                self.renewed_at = sent_at
            elif self.holder not in ("", self.identity) or (
                self.clock() - self.renewed_at >= self.renew_deadline_seconds
            ):
                raise LeadershipLost(
                    f"lease {self.namespace}/{self.name} was not renewed for "
                    f"{self.clock() - self.renewed_at:.1f} s (holder now: {self.holder!r}); "
                    "this replica stops and is started again"
                )

    async def _attempt(self, *, limit_seconds: float) -> bool:
        """Try once to get or keep the lease. Every failure counts as "not renewed"."""
        try:
            async with asyncio.timeout(limit_seconds):
                return await self._take_or_keep()
        except (KubeError, TimeoutError) as error:
            log_event(logger, "lease_attempt_failed", level=logging.WARNING, error=repr(error))
            return False

    async def _take_or_keep(self) -> bool:
        try:
            lease = await self.kube.get(LEASES, self.name, namespace=self.namespace)
        except NotFound:
            return await self._create()
        spec = lease.get("spec") or {}
        self.holder = str(spec.get("holderIdentity") or "")
        record = (self.holder, str(lease["metadata"].get("resourceVersion")))
        if record != self._seen:
            self._seen, self._seen_at = record, self.clock()
        if self.holder not in ("", self.identity) and not self._expired(spec):
            return False
        if self.renewed_at is not None and self.holder != self.identity:
            # Somebody else held it since: what we did in the meantime must end here.
            return False
        lease["spec"] = self._spec(previous=spec)
        await self.kube.update(LEASES, lease, namespace=self.namespace)
        self.holder = self.identity
        return True

    def _expired(self, spec: dict[str, Any]) -> bool:
        """The whole lease has passed since we saw the record change."""
        lease_seconds = float(spec.get("leaseDurationSeconds") or self.lease_seconds)
        return self.clock() - self._seen_at > lease_seconds

    async def _create(self) -> bool:
        metadata: Object = {"name": self.name, "namespace": self.namespace, "labels": self.labels}
        if self.owner_references:
            metadata["ownerReferences"] = list(self.owner_references)
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": self._spec(previous={}),
        }
        try:
            await self.kube.create(LEASES, body, namespace=self.namespace)
        except AlreadyExists:
            return False
        self.holder = self.identity
        return True

    def _spec(self, *, previous: dict[str, Any]) -> Object:
        now = micro_time(self.now())
        kept = previous.get("holderIdentity") == self.identity
        transitions = int(previous.get("leaseTransitions") or 0)
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, int(self.lease_seconds)),
            "acquireTime": previous.get("acquireTime") if kept else now,
            "renewTime": now,
            "leaseTransitions": transitions if kept or not previous else transitions + 1,
        }

    async def _release(self) -> None:
        """Give the lease up, so that the next replica need not wait for it to expire."""
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                lease = await self.kube.get(LEASES, self.name, namespace=self.namespace)
                if (lease.get("spec") or {}).get("holderIdentity") != self.identity:
                    return
                lease["spec"]["holderIdentity"] = ""
                lease["spec"]["leaseDurationSeconds"] = 1
                await self.kube.update(LEASES, lease, namespace=self.namespace)
            log_event(logger, "leader_released", identity=self.identity, lease=self.name)
        except (KubeError, TimeoutError) as error:
            log_event(logger, "leader_release_failed", level=logging.WARNING, error=repr(error))
