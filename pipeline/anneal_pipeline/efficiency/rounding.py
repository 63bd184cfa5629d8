"""What the base has lost by being held in 4 bits, and what that saves.

The weights that are held are compared with the model's own files, on a sample of the layers: errors
of one kind of layer differ little with depth, and reading all of a large model again takes minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel

from anneal_pipeline.memory.plan import size_text
from anneal_pipeline.model.adapters import bytes_of, count_of
from anneal_pipeline.model.beginning import OnLayer, untold

_ROWS = 256
"""Of a weight, compared at once: a whole one in double precision may be more than there is."""


@dataclass(frozen=True, kw_only=True)
class KindRounding:
    """Of all 4-bit layers whose modules have one name: q_proj, down_proj ..."""

    kind: str
    num_modules: int
    errors: tuple[float, ...]
    """Root mean square of the rounding errors over that of the weights, of each one measured."""

    @property
    def error(self) -> float:
        return fmean(self.errors)


@dataclass(frozen=True, kw_only=True)
class Rounding:
    type: str
    """nf4 or fp4."""
    num_weights: int
    """Of all 4-bit layers."""
    num_bytes: int
    """What they take, with the constants of their blocks."""
    kinds: tuple[KindRounding, ...]

    @property
    def error(self) -> float:
        """The mean over all layers, each taken for the mean of its kind."""
        modules = sum(kind.num_modules for kind in self.kinds)
        return sum(kind.error * kind.num_modules for kind in self.kinds) / modules

    @property
    def num_measured(self) -> int:
        return sum(len(kind.errors) for kind in self.kinds)

    @property
    def bits(self) -> float:
        """A weight, with its share of the constants."""
        return 8 * self.num_bytes / self.num_weights

    @property
    def saved_bytes(self) -> int:
        """Against the same weights in 16 bits."""
        return 2 * self.num_weights - self.num_bytes

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"The base in {self.type}: its weights are off by {self.error:.1%} (root mean square, "
            f"of {self.num_measured} layers), at {self.bits:.2f} bits a weight it takes "
            f"{size_text(self.num_bytes)} and saves {size_text(self.saved_bytes)} against 16 bits"
        )

    def metrics(self) -> dict[str, float]:
        return {"rounding_error": self.error, "bits_per_weight": self.bits}

    def to_data(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "error": self.error,
            "bits_per_weight": self.bits,
            "num_weights": self.num_weights,
            "num_bytes": self.num_bytes,
            "saved_bytes": self.saved_bytes,
            "kinds": [asdict(kind) | {"error": kind.error} for kind in self.kinds],
        }


@torch.no_grad()
def measure_rounding(
    tuned: PeftModel, folder: Path, *, on_layer: OnLayer = untold
) -> Rounding | None:
    """Against the weights in `folder`; None for a base that is not held in 4 bits.

    Kinds whose weights the files do not hold under their own names are left out; None if all are.
    `on_layer` is told of each layer measured, and ends the work by raising.
    """
    if not getattr(tuned.get_base_model(), "is_loaded_in_4bit", False):
        return None
    # Only a base in 4 bits needs bitsandbytes.
    from anneal_pipeline.model.unquantised import (
        UnquantisedWeights,
        layers_in_4_bit,
        rounded,
    )

    weights = UnquantisedWeights(folder, tuned=tuned)
    by_kind: dict[str, list[tuple[str, Any]]] = {}
    for name, layer in layers_in_4_bit(tuned):
        by_kind.setdefault(name.rpartition(".")[2], []).append((name, layer))
    samples = {kind: _spread(layers) for kind, layers in by_kind.items()}
    total, done, kinds = sum(map(len, samples.values())), 0, []
    for kind, sample in samples.items():
        errors = []
        for name, layer in sample:
            whole = weights.read(name, layer)
            if whole is not None:
                errors.append(_relative(rounded(layer), whole))
            done += 1
            on_layer(done, total)
        if errors:
            kinds.append(
                KindRounding(kind=kind, num_modules=len(by_kind[kind]), errors=tuple(errors))
            )
    if not kinds:
        return None
    held = [layer.weight for layers in by_kind.values() for _, layer in layers]
    return Rounding(
        type=held[0].quant_type,
        num_weights=sum(map(count_of, held)),
        num_bytes=sum(map(bytes_of, held)),
        kinds=tuple(kinds),
    )


def _spread(layers: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The first, the middle and the last one, each once."""
    last = len(layers) - 1
    return [layers[i] for i in dict.fromkeys((0, last // 2, last))]


def _relative(held: torch.Tensor, whole: torch.Tensor) -> float:
    """Root mean square of the difference over that of `whole`, a block of rows at a time."""
    lost = size = 0.0
    for first in range(0, len(whole), _ROWS):
        exact = whole[first : first + _ROWS].double()
        size += float(exact.square().sum())
        lost += float((exact - held[first : first + _ROWS]).square().sum())
    return (lost / size) ** 0.5 if size else 0.0
