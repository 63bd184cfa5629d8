"""Fields this release does not act on yet.

A value listed here is refused (Accepted=False, or Ready=False for a profile, reason NotImplemented;
`anneal run` likewise), never silently ignored. An issue that builds a feature deletes its line and
switches the default on. A test holds every field of both specs to be listed here or used somewhere.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.spec import FineTuneJobSpec


@dataclass(frozen=True, kw_only=True)
class UnsupportedField:
    """One field with a value that this release cannot honour."""

    path: str
    got: str
    allowed: str

    def __str__(self) -> str:
        return f"spec.{self.path}: {self.got} is not implemented in this release; {self.allowed}"


_Spec = TypeVar("_Spec", FineTuneJobSpec, FineTuneProfileSpec)


@dataclass(frozen=True, kw_only=True)
class _Check(Generic[_Spec]):
    path: str
    refused: Callable[[_Spec], object]
    """Returns the values that are refused: one, several in a tuple, or a falsy one for none."""
    allowed: str


def _outside(values: tuple[str, ...], supported: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value for value in values if value not in supported)


SUPPORTED_METRICS = ("responsePerplexity", "perplexity", "tokenAccuracy")

_REMOVE = "remove the field"

_JOB_CHECKS: tuple[_Check[FineTuneJobSpec], ...] = (
    _Check(
        path="tuning.lora.bias",
        refused=lambda s: _outside((s.tuning.lora.bias,), ("none",)),
        allowed="use none",
    ),
    _Check(
        path="evaluation.metrics",
        refused=lambda s: _outside(s.evaluation.metrics, SUPPORTED_METRICS),
        allowed="use responsePerplexity, perplexity or tokenAccuracy",
    ),
    _Check(
        path="evaluation.generalText",
        refused=lambda s: s.evaluation.general_text,
        allowed=_REMOVE,
    ),
    _Check(
        path="export.formats",
        refused=lambda s: _outside(s.export.formats, ("adapter",)),
        allowed="use adapter",
    ),
    _Check(path="export.gguf", refused=lambda s: s.export.gguf, allowed=_REMOVE),
    _Check(path="tracking.gate", refused=lambda s: s.tracking.gate, allowed=_REMOVE),
    _Check(
        path="compute.workers",
        refused=lambda s: _more_than_one(s.compute.workers),
        allowed="use 1",
    ),
    _Check(
        path="compute.gpusPerWorker",
        refused=lambda s: _more_than_one(s.compute.gpus_per_worker),
        allowed="use 0 or 1",
    ),
    _Check(
        path="compute.engine",
        refused=lambda s: _outside((s.compute.engine,), ("Auto", "Job")),
        allowed="use Auto or Job",
    ),
    _Check(path="queue.name", refused=lambda s: s.queue.name, allowed=_REMOVE),
    _Check(path="queue.priorityClass", refused=lambda s: s.queue.priority_class, allowed=_REMOVE),
    _Check(
        path="retry.excludeFailedNodes",
        refused=lambda s: s.retry.exclude_failed_nodes,
        allowed=_REMOVE,
    ),
)


_PROFILE_CHECKS: tuple[_Check[FineTuneProfileSpec], ...] = (
    _Check(path="models.cache", refused=lambda p: p.models.cache, allowed=_REMOVE),
    _Check(
        path="limits.workers",
        refused=lambda p: _more_than_one(p.limits.workers),
        allowed="use 1",
    ),
    _Check(
        path="resources.gpusPerWorker",
        refused=lambda p: _more_than_one(p.resources.gpus_per_worker),
        allowed="use 0 or 1",
    ),
    _Check(path="ray.version", refused=lambda p: p.ray.version, allowed=_REMOVE),
    _Check(path="ray.rayStartParams", refused=lambda p: p.ray.ray_start_params, allowed=_REMOVE),
    _Check(path="queue.default", refused=lambda p: p.queue.default, allowed=_REMOVE),
    _Check(path="gpuMemoryBytes", refused=lambda p: p.gpu_memory_bytes, allowed=_REMOVE),
)


def _more_than_one(value: int | None) -> int | None:
    return value if value is not None and value > 1 else None


def unsupported_fields(spec: FineTuneJobSpec) -> tuple[UnsupportedField, ...]:
    """Return every field whose value this release cannot honour, in the order of the spec."""
    return tuple(_found(spec, checks=_JOB_CHECKS))


def unsupported_profile_fields(profile: FineTuneProfileSpec) -> tuple[UnsupportedField, ...]:
    """Return the same for a profile."""
    return tuple(_found(profile, checks=_PROFILE_CHECKS))


def _found(spec: _Spec, *, checks: Iterable[_Check[_Spec]]) -> Iterator[UnsupportedField]:
    for check in checks:
        refused = check.refused(spec)
        if not refused:
            continue
        shown = ", ".join(map(str, refused)) if isinstance(refused, tuple) else _shown(refused)
        yield UnsupportedField(path=check.path, got=shown, allowed=check.allowed)


def _shown(value: object) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else (str(value) if isinstance(value, str | int | float) else "this setting")
    )
