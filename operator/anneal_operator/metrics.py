"""What Prometheus can ask. No label ever holds a job's name: cardinality stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60)


class Metrics:
    """The operator's own counters, in a registry of their own."""

    def __init__(self, *, version: str) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "anneal_reconciles",
            "Reconciles by controller and result (success, retry, error).",
            ("controller", "result"),
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "anneal_reconcile_seconds",
            "Time of one reconcile.",
            ("controller",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.attempts = Counter(
            "anneal_attempts_ended",
            "Ended attempts by class.",
            ("class",),
            registry=self.registry,
        )
        self.finished = Counter(
            "anneal_jobs_finished",
            "Jobs that reached their end, by phase and reason.",
            ("phase", "reason"),
            registry=self.registry,
        )
        self.reports = Counter(
            "anneal_progress_reports",
            "Progress reports by HTTP status.",
            ("code",),
            registry=self.registry,
        )
        self.tracking_calls = Counter(
            "anneal_tracking_calls",
            "Calls to MLflow by operation and result.",
            ("operation", "result"),
            registry=self.registry,
        )
        self.gpu_seconds = Counter(
            "anneal_gpu_seconds", "GPU time of ended attempts.", registry=self.registry
        )
        build = Gauge(
            "anneal_build_info", "Version of the operator.", ("version",), registry=self.registry
        )
        build.labels(version).set(1)

    def collect_from(self, sample: Callable[[], Iterable[GaugeMetricFamily]]) -> None:
        """Ask `sample` at each scrape for gauges whose truth lies elsewhere."""
        self.registry.register(_Sampled(sample))


class _Sampled(Collector):
    def __init__(self, sample: Callable[[], Iterable[GaugeMetricFamily]]) -> None:
        self._sample = sample

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield from self._sample()
