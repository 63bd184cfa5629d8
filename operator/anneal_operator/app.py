"""The operator put together: caches, election, workers, servers. Wiring only, no decisions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from anneal_operator.api import names
from anneal_operator.caches import Caches, job_uid_of, uid_of
from anneal_operator.children import Children
from anneal_operator.claims import Claims
from anneal_operator.clock import utc_now
from anneal_operator.controller import Controller, resync
from anneal_operator.health import Health
from anneal_operator.kube import Kube, Object, connect
from anneal_operator.leader import Elector
from anneal_operator.logs import log_event
from anneal_operator.metrics import Metrics
from anneal_operator.profiles import ProfileReconciler
from anneal_operator.progress_board import ProgressBoard
from anneal_operator.progress_server import ProgressServer, reload_certificate, server_context
from anneal_operator.reconciler import Reconciler
from anneal_operator.resources import CLUSTER_ROLES
from anneal_operator.settings import Settings
from anneal_operator.token_bucket import TokenBucket
from anneal_operator.tracking import Tracker
from anneal_operator.workqueue import Key, WorkQueue

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 10.0
CLAIM_RETRY_SECONDS = 60.0


class Operator:
    """One replica of the operator."""

    def __init__(
        self,
        settings: Settings,
        *,
        kube: Kube,
        urgent: Kube,
        session: aiohttp.ClientSession,
        forward: aiohttp.ClientSession,
    ) -> None:
        self.settings, self.kube, self.urgent = settings, kube, urgent
        self.caches = Caches()
        self.queue, self.profile_queue = WorkQueue(), WorkQueue()
        self.metrics = Metrics(version=version("anneal"))
        self.owners: tuple[Object, ...] = ()
        self.reflectors = self.caches.reflectors(kube, settings)
        self.board = ProgressBoard(queue=self.queue, clock=time.monotonic, now=utc_now)
        self.tracker = Tracker(
            settings=settings, session=session, metrics=self.metrics, wake=self.queue.add
        )
        self.claims = Claims(
            kube=kube, settings=settings, now=utc_now, owner_references=lambda: self.owners
        )
        self.elector = _elector(urgent, settings)
        self.reconciler = self._reconciler()
        self.progress = self._progress_server(forward)
        self._listen()

    def _reconciler(self) -> Reconciler:
        children = Children(
            kube=self.kube,
            settings=self.settings,
            jobs=self.caches.children,
            pods=self.caches.pods,
            owner_references=lambda: self.owners,
        )
        return Reconciler(
            kube=self.kube,
            settings=self.settings,
            jobs=self.caches.jobs,
            profiles=self.caches.profiles,
            children=children,
            board=self.board,
            tracker=self.tracker,
            metrics=self.metrics,
            now=utc_now,
        )

    def _progress_server(self, forward: aiohttp.ClientSession) -> ProgressServer:
        return ProgressServer(
            kube=self.urgent,
            jobs=self.caches.jobs,
            pods=self.caches.pods,
            board=self.board,
            metrics=self.metrics,
            leading=lambda: self.elector.leading,
            synced=lambda: all(r.synced.is_set() for r in self.reflectors),
            leader_address=lambda: self.elector.holder.rpartition("@")[2],
            forward=forward,
            server_name=urlsplit(self.settings.progress_url).hostname or "",
            clock=time.monotonic,
        )

    def _listen(self) -> None:
        """Turn changes of any kind into due jobs."""
        caches = self.caches

        def job_changed(key: Key, before: Object | None, after: Object | None) -> None:
            if before is not None and (after is None or uid_of(after) != uid_of(before)):
                self.reconciler.forget(uid_of(before))
            self.queue.add(key)

        def child_changed(_: Key, before: Object | None, after: Object | None) -> None:
            job = caches.key_of_job(job_uid_of(after or before or {"metadata": {}}))
            if job is not None:
                self.queue.add(job)

        def profile_changed(key: Key, before: Object | None, after: Object | None) -> None:
            self.profile_queue.add(key)
            if before and after and _generation(before) == _generation(after):
                # A status write of our own makes nobody's verdict another.
                return
            for job in caches.jobs.all_keys():
                self.queue.add(job)

        caches.jobs.listen(job_changed)
        caches.children.listen(child_changed)
        caches.pods.listen(child_changed)
        caches.profiles.listen(profile_changed)

    async def run(self, *, stop: asyncio.Event) -> None:
        """Run this replica until `stop` is set. Standbys watch and serve, and do not write."""
        settings = self.settings
        await self._find_owner()
        await self.claims.check_at_start()
        health = Health(
            metrics=self.metrics,
            elector=self.elector,
            reflectors=self.reflectors,
            queues={"finetunejob": self.queue, "profile": self.profile_queue},
            jobs=self.caches.jobs,
            clock=time.monotonic,
        )
        tls = server_context(settings.progress_tls_dir)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(
                serving(health.application(), host=settings.health_host, port=settings.health_port)
            )
            await stack.enter_async_context(
                serving(
                    self.progress.application(),
                    host=settings.progress_host,
                    port=settings.progress_port,
                    tls=tls,
                )
            )
            watching = [asyncio.create_task(r.run(), name=r.name) for r in self.reflectors]
            watching.append(asyncio.create_task(reload_certificate(tls, settings.progress_tls_dir)))
            leading = asyncio.create_task(self.elector.run(self._lead, stop=stop))
            try:
                await asyncio.wait({*watching, leading}, return_when=asyncio.FIRST_COMPLETED)
                for task in (*watching, leading):
                    if task.done():
                        task.result()
            finally:
                for task in (*watching, leading):
                    task.cancel()
                await asyncio.gather(*watching, leading, return_exceptions=True)
                await self.tracker.close()

    async def _lead(self) -> None:
        """The work of the leader; cancelled when the lease is lost."""
        for reflector in self.reflectors:
            await reflector.synced.wait()
        await self.claims.claim_watched()
        self.reconciler.serving_since = utc_now()
        jobs = Controller(
            name="finetunejob",
            queue=self.queue,
            reconcile=self._reconcile_claimed,
            metrics=self.metrics,
            num_workers=self.settings.workers,
        )
        for key in self.caches.jobs.all_keys():
            self.queue.add(key)
        async with asyncio.TaskGroup() as work:
            work.create_task(jobs.run())
            work.create_task(self.claims.renew())
            work.create_task(self.tracker.sweep(alive=self.caches.alive))
            work.create_task(
                resync(
                    queue=self.queue,
                    keys=self.caches.jobs.all_keys,
                    interval_seconds=self.settings.resync_seconds,
                )
            )
            if not self.settings.watch_namespaces:
                work.create_task(self._profile_controller().run())

    def _profile_controller(self) -> Controller:
        profiles = ProfileReconciler(
            kube=self.kube, settings=self.settings, profiles=self.caches.profiles, now=utc_now
        )
        return Controller(
            name="profile",
            queue=self.profile_queue,
            reconcile=profiles.reconcile,
            metrics=self.metrics,
            num_workers=1,
        )

    async def _reconcile_claimed(self, key: Key) -> float | None:
        """Reconcile a job unless another release serves its namespace."""
        if self.caches.jobs.get(key) is None:
            return None
        if not await self.claims.claim(key.namespace):
            log_event(
                logger,
                "namespace_served_by_another",
                level=logging.WARNING,
                namespace=key.namespace,
                name=key.name,
            )
            return CLAIM_RETRY_SECONDS
        return await self.reconciler.reconcile(key)

    async def _find_owner(self) -> None:
        """Look up the release's ClusterRole, which owns what is made at run time."""
        name = self.settings.owner_cluster_role
        if not name:
            return
        role = await self.kube.get(CLUSTER_ROLES, name)
        owner = {
            "apiVersion": CLUSTER_ROLES.api_version,
            "kind": CLUSTER_ROLES.kind,
            "name": name,
            "uid": uid_of(role),
        }
        self.owners = (owner,)
        self.elector.owner_references = self.owners


def _elector(kube: Kube, settings: Settings) -> Elector:
    return Elector(
        kube=kube,
        namespace=settings.pod_namespace,
        name=settings.leader_lease,
        identity=f"{settings.pod_name}@{settings.address}",
        clock=time.monotonic,
        random=random.random,
        now=utc_now,
        labels={names.LABEL_RELEASE: settings.identity},
    )


def _generation(obj: Object) -> object:
    return obj["metadata"].get("generation")


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, *, host: str, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Serve an application while the block runs."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        yield
    finally:
        await runner.cleanup()


async def run(settings: Settings, *, stop: asyncio.Event) -> None:
    """Connect and run one replica until `stop` is set."""
    agent = f"anneal-operator/{version('anneal')}"
    bucket = TokenBucket(
        rate=settings.writes_per_second, burst=settings.writes_burst, clock=time.monotonic
    )
    ca = settings.progress_tls_dir / "ca.crt"
    async with contextlib.AsyncExitStack() as stack:
        kube = await connect(
            user_agent=agent,
            kubeconfig=settings.kubeconfig,
            context=settings.kube_context,
            writes=bucket,
        )
        stack.push_async_callback(kube.close)
        urgent = await connect(
            user_agent=agent, kubeconfig=settings.kubeconfig, context=settings.kube_context
        )
        stack.push_async_callback(urgent.close)
        # Only for MLflow: certificates as the system trusts them.
        session = await stack.enter_async_context(aiohttp.ClientSession())
        forward = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(ca)))
            )
        )
        operator = Operator(settings, kube=kube, urgent=urgent, session=session, forward=forward)
        await operator.run(stop=stop)
