"""/healthz, /readyz and /metrics over plain HTTP, for the kubelet and Prometheus.

Alive means: the event loop answers, and if we lead, the lease was renewed within its duration.
Reaching the API server is no part of it; a restart would not help. Ready means: every cache has
been filled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily

from anneal_operator.api.reasons import Phase
from anneal_operator.leader import Elector
from anneal_operator.metrics import Metrics
from anneal_operator.reflector import Reflector
from anneal_operator.store import Store
from anneal_operator.workqueue import WorkQueue


@dataclass(frozen=True, slots=True)
class Health:
    """What the probes ask."""

    metrics: Metrics
    elector: Elector
    reflectors: tuple[Reflector, ...]
    queues: dict[str, WorkQueue]
    jobs: Store
    clock: Callable[[], float]

    def application(self) -> web.Application:
        self.metrics.collect_from(self._sample)
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _healthz(self, _: web.Request) -> web.Response:
        renewed_at = self.elector.renewed_at
        if renewed_at is not None and self.clock() - renewed_at > self.elector.lease_seconds:
            return web.Response(status=500, text="leading without a renewed lease\n")
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        waiting = [r.name for r in self.reflectors if not r.synced.is_set()]
        if waiting:
            return web.Response(status=503, text=f"not listed yet: {', '.join(waiting)}\n")
        return web.Response(text="ok\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _sample(self) -> Iterable[GaugeMetricFamily]:
        phases = GaugeMetricFamily("anneal_jobs", "FineTuneJobs by phase.", labels=["phase"])
        counts = dict.fromkeys(map(str, Phase), 0)
        for job in self.jobs.values():
            phase = str((job.get("status") or {}).get("phase") or Phase.PENDING)
            counts[phase] = counts.get(phase, 0) + 1
        for phase, count in counts.items():
            phases.add_metric([phase], count)
        yield phases
        depth = GaugeMetricFamily(
            "anneal_workqueue_depth", "Keys that wait for a worker.", labels=["controller"]
        )
        for name, queue in self.queues.items():
            depth.add_metric([name], queue.depth)
        yield depth
        age = GaugeMetricFamily(
            "anneal_watch_last_event_age_seconds",
            "Time since the API server last said anything on a watch.",
            labels=["kind"],
        )
        for reflector in self.reflectors:
            age.add_metric([reflector.name], self.clock() - reflector.last_event_at)
        yield age
        yield GaugeMetricFamily(
            "anneal_leader", "1 on the replica that leads.", value=float(self.elector.leading)
        )
