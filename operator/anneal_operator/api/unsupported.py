"""Fields this release does not act on yet.

A value listed here is refused (Accepted=False, reason NotImplemented; `anneal run` likewise), never
silently ignored. An issue that builds a feature deletes its line and switches the default on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from anneal_operator.api.spec import FineTuneJobSpec


@dataclass(frozen=True, kw_only=True)
class UnsupportedField:
    """One field with a value that this release cannot honour."""

    path: str
    got: str
    allowed: str

    def __str__(self) -> str:
        return f"spec.{self.path}: {self.got} is not implemented in this release; {self.allowed}"


@dataclass(frozen=True, kw_only=True)
class _Check:
    path: str
    refused: Callable[[FineTuneJobSpec], object]
    """Returns the values that are refused: one, several in a tuple, or a falsy one for none."""
    allowed: str


def _outside(values: tuple[str, ...], supported: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value for value in values if value not in supported)


SUPPORTED_FORMATS = ("auto", "jsonl")
SUPPORTED_LAYOUTS = ("auto", "messages", "instruction")
SUPPORTED_METRICS = ("responsePerplexity", "perplexity", "tokenAccuracy")

_REMOVE = "remove the field"

_CHECKS: tuple[_Check, ...] = (
    _Check(
        path="dataset.format",
        refused=lambda s: _outside((s.dataset.format,), SUPPORTED_FORMATS),
        allowed="use auto or jsonl",
    ),
    _Check(
        path="dataset.layout",
        refused=lambda s: _outside((s.dataset.layout,), SUPPORTED_LAYOUTS),
        allowed="use auto, messages or instruction",
    ),
    _Check(path="dataset.columns", refused=lambda s: s.dataset.columns, allowed=_REMOVE),
    _Check(
        path="dataset.split.stratifyBy",
        refused=lambda s: s.dataset.effective_split.stratify_by,
        allowed=_REMOVE,
    ),
    _Check(
        path="dataset.split.groupBy",
        refused=lambda s: s.dataset.effective_split.group_by,
        allowed=_REMOVE,
    ),
    _Check(
        path="dataset.filters.deduplicate",
        refused=lambda s: _outside((s.dataset.filters.deduplicate,), ("exact", "off")),
        allowed="use exact or off",
    ),
    _Check(
        path="tuning.fallback",
        refused=lambda s: _outside((s.tuning.fallback,), ("refuse",)),
        allowed="use refuse",
    ),
    _Check(path="tuning.lora.useDora", refused=lambda s: s.tuning.lora.use_dora, allowed=_REMOVE),
    _Check(
        path="tuning.lora.bias",
        refused=lambda s: _outside((s.tuning.lora.bias,), ("none",)),
        allowed="use none",
    ),
    _Check(
        path="tuning.lora.modulesToSave",
        refused=lambda s: s.tuning.lora.modules_to_save,
        allowed=_REMOVE,
    ),
    _Check(
        path="tuning.quantization.computeDtype",
        refused=lambda s: _outside(
            (s.tuning.quantization.compute_dtype,), ("auto", "bfloat16", "float32")
        ),
        allowed="use auto, bfloat16 or float32",
    ),
    _Check(path="training.packing", refused=lambda s: s.training.packing, allowed=_REMOVE),
    _Check(
        path="training.optimizer",
        refused=lambda s: _outside((s.training.optimizer,), ("adamw",)),
        allowed="use adamw",
    ),
    _Check(
        path="training.earlyStopping", refused=lambda s: s.training.early_stopping, allowed=_REMOVE
    ),
    *(
        _Check(
            path=f"training.recovery.{name}",
            refused=lambda s, name=name: _outside(  # type: ignore[misc]
                (getattr(s.training.recovery, name),), ("fail",)
            ),
            allowed="use fail",
        )
        for name in ("oom", "nan", "divergence")
    ),
    _Check(
        path="training.loraPlusRatio", refused=lambda s: s.training.lora_plus_ratio, allowed=_REMOVE
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
        refused=lambda s: s.compute.workers if s.compute.workers > 1 else None,
        allowed="use 1",
    ),
    _Check(
        path="compute.ranksPerWorker",
        refused=lambda s: s.compute.ranks_per_worker if _num_ranks(s) > 1 else None,
        allowed="use 1",
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


def _num_ranks(spec: FineTuneJobSpec) -> int:
    return spec.compute.ranks_per_worker or 1


def unsupported_fields(spec: FineTuneJobSpec) -> tuple[UnsupportedField, ...]:
    """Return every field whose value this release cannot honour, in the order of the spec."""
    return tuple(_found(spec))


def _found(spec: FineTuneJobSpec) -> Iterator[UnsupportedField]:
    for check in _CHECKS:
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
