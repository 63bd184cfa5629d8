"""The job's MLflow run: made once, closed truthfully, and never a reason to hold up a worker.

Reconcile asks and comes back later: each question runs in a task of its own, its answer is kept
here, and the job becomes due again when it is there. Answers are facts about the outside world and
not decisions; what follows from them is decided in `plan`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import aiohttp

from anneal_operator.api import names
from anneal_operator.api.reasons import Reason
from anneal_operator.api.run_page import run_page
from anneal_operator.errors import TrackingDenied, TrackingError, TrackingRejected
from anneal_operator.logs import log_event
from anneal_operator.metrics import Metrics
from anneal_operator.mlflow_rest import FoundRun, MlflowServer
from anneal_operator.observation import Job, Run, Tracking
from anneal_operator.settings import Settings, TrackingServer
from anneal_operator.workqueue import Key

PARALLEL_CALLS = 8
SWEEP_SECONDS = 600.0
SWEEP_SOON_SECONDS = 30.0
"""After a job was deleted: its pods need their grace period before the run may be closed."""

logger = logging.getLogger(__name__)


def run_tags(job: Job, *, release: str, extra: dict[str, str]) -> dict[str, str]:
    """Tags of the run. The job's own tags never replace ours."""
    return {
        **extra,
        names.TAG_JOB_UID: job.uid,
        names.TAG_JOB_NAME: job.name,
        names.TAG_JOB_NAMESPACE: job.namespace,
        names.TAG_RELEASE: release,
        "mlflow.source.name": f"{job.namespace}/{job.name}",
        "mlflow.source.type": "JOB",
    }


def run_url(server: TrackingServer, run: FoundRun) -> str:
    """The run's page, for a person's browser."""
    base = (server.publicUrl or server.uri).rstrip("/")
    return base + run_page(experiment_id=run.experiment_id, run_id=run.run_id)


@dataclass(slots=True)
class Tracker:
    """What MLflow has answered about each job, and the questions under way."""

    settings: Settings
    session: aiohttp.ClientSession
    metrics: Metrics
    wake: Callable[[Key], None]
    """Makes a job due again."""
    _answers: dict[str, Tracking] = field(default_factory=dict)
    _asking: dict[tuple[str, str], asyncio.Task[None]] = field(default_factory=dict)
    _orphans: asyncio.Event = field(default_factory=asyncio.Event)
    _calls: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL_CALLS))

    def known(self, job_uid: str) -> Tracking:
        """The answers so far."""
        return self._answers.get(job_uid, Tracking())

    def forget(self, job_uid: str) -> None:
        """The job is gone; see to its run soon."""
        self._answers.pop(job_uid, None)
        self._orphans.set()

    def ensure_run(self, job: Job, *, uri: str, experiment: str, tags: dict[str, str]) -> None:
        """Find the job's run, or make it."""

        async def ask(server: MlflowServer) -> dict[str, Any]:
            run = await ensure_run(server, job=job, experiment=experiment, tags=tags)
            url = run_url(server.server, run)
            return {"run": Run(run_id=run.run_id, experiment_id=run.experiment_id, url=url)}

        self._ask(job, "ensure_run", uri=uri, ask=ask)

    def close_run(self, job: Job, *, uri: str, run_id: str, state: str) -> None:
        """Close the run as what it was."""

        async def ask(server: MlflowServer) -> dict[str, Any]:
            await server.close_run(run_id, status=state, end_time_ms=_now_ms())
            return {"closed": state}

        self._ask(job, "close_run", uri=uri, ask=ask)

    def check_digest(self, job: Job, *, uri: str, name: str, version: str) -> None:
        """Read the artefact digest on the registered version."""

        async def ask(server: MlflowServer) -> dict[str, Any]:
            tag = await server.version_tag(name, version, tag=names.TAG_ARTEFACT_DIGEST)
            return {"digest": tag or ""}

        self._ask(job, "check_digest", uri=uri, ask=ask)

    def _ask(
        self,
        job: Job,
        operation: str,
        *,
        uri: str,
        ask: Callable[[MlflowServer], Coroutine[Any, Any, dict[str, Any]]],
    ) -> None:
        if (job.uid, operation) in self._asking:
            return
        task = asyncio.create_task(self._answer(job, operation, uri=uri, ask=ask))
        self._asking[job.uid, operation] = task
        task.add_done_callback(lambda _: self._asking.pop((job.uid, operation), None))

    async def _answer(
        self,
        job: Job,
        operation: str,
        *,
        uri: str,
        ask: Callable[[MlflowServer], Coroutine[Any, Any, dict[str, Any]]],
    ) -> None:
        before = self.known(job.uid)
        try:
            async with self._calls:
                found = await ask(self._server(uri))
            after = replace(self.known(job.uid), error=None, fault="Silent", **found)
        except TrackingError as error:
            after = replace(self.known(job.uid), error=str(error), fault=_fault(error))
            log_event(
                logger,
                "tracking_failed",
                level=logging.WARNING,
                operation=operation,
                namespace=job.namespace,
                name=job.name,
                uid=job.uid,
                error=str(error),
            )
        result = "error" if after.error else "success"
        self.metrics.tracking_calls.labels(operation, result).inc()
        self._answers[job.uid] = after
        if after != before:
            self.wake(Key(job.namespace, job.name))

    def _server(self, uri: str) -> MlflowServer:
        server = self.settings.tracking_server(uri)
        if server is None:
            raise TrackingDenied(f"there is no entry for {uri} ({Reason.TRACKING_NOT_KNOWN})")
        return MlflowServer(session=self.session, server=server)

    async def close(self) -> None:
        """Give up every question under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def sweep(self, *, alive: Callable[[str], bool]) -> None:
        """Close runs whose job no longer exists: at once, every 10 minutes, after deletions.

        `alive` tells whether a job of that uid exists or a pod of it still runs.
        """
        while True:
            self._orphans.clear()
            for server in self.settings.tracking_servers:
                try:
                    await self._sweep_one(MlflowServer(self.session, server), alive=alive)
                except TrackingError as error:
                    log_event(
                        logger, "orphan_sweep_failed", level=logging.WARNING, error=str(error)
                    )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._orphans.wait()
                    await asyncio.sleep(SWEEP_SOON_SECONDS)

    async def _sweep_one(self, server: MlflowServer, *, alive: Callable[[str], bool]) -> None:
        experiments = await server.experiment_ids()
        if not experiments:
            return
        where = (
            f"tags.`{names.TAG_RELEASE}` = '{self.settings.identity}' "
            "and attributes.status = 'RUNNING'"
        )
        for run in await server.search_runs(experiments, where=where):
            if alive(run.tags.get(names.TAG_JOB_UID, "")):
                continue
            await server.close_run(run.run_id, status="KILLED", end_time_ms=_now_ms())
            log_event(
                logger,
                "orphan_run_closed",
                run_id=run.run_id,
                uid=run.tags.get(names.TAG_JOB_UID),
                server=server.server.uri,
            )


async def ensure_run(
    server: MlflowServer, *, job: Job, experiment: str, tags: dict[str, str]
) -> FoundRun:
    """Find the run by the job's uid, or make it, then search again and keep the oldest.

    MLflow has no unique key: a retried or simultaneous create makes a second run. Whoever searches
    afterwards sees both, keeps the oldest and marks the others deleted, so all come to the same.
    """
    experiment_id = await server.experiment_id(experiment)
    where = f"tags.`{names.TAG_JOB_UID}` = '{job.uid}'"
    found = await server.search_runs([experiment_id], where=where)
    if not found:
        await server.create_run(
            experiment_id,
            name=f"{job.name}-{job.uid[:8]}",
            tags=tags,
            start_time_ms=_now_ms(),
        )
        found = await server.search_runs([experiment_id], where=where)
    if not found:
        raise TrackingError(f"{server.server.uri} took a new run and does not find it")
    oldest, *others = sorted(found, key=lambda run: (run.start_time, run.run_id))
    for run in others:
        await server.delete_run(run.run_id)
    return oldest


def _fault(error: TrackingError) -> Literal["Silent", "Denied", "Rejected"]:
    match error:
        case TrackingRejected():
            return "Rejected"
        case TrackingDenied():
            return "Denied"
        case _:
            return "Silent"


def _now_ms() -> int:
    return int(time.time() * 1000)
