"""Gradients of the adapters through a run: running sums for each, from gradients already there.

A sample is the root mean square of an adapter's gradient in one step, before clipping, which does
not grow with the adapter's size. The sums are plain numbers that go into the run's state, so that a
run that was interrupted ends with those of one that was not; nothing here changes a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from anneal_pipeline.efficiency.adapters import Adapter

Sums = Mapping[str, list[float]]
"""By adapter: samples, their sum, the sum of their squares, the least and the largest."""
_CLIP_EPSILON = 1e-6
"""What torch adds to the norm it clips by."""


@dataclass(frozen=True, kw_only=True)
class GradientStatistics:
    """Of the samples of an adapter, or of several."""

    num_samples: int
    mean: float
    std: float
    least: float
    largest: float

    @classmethod
    def of(cls, sums: Iterable[Sequence[float]]) -> GradientStatistics | None:
        """Of all samples in `sums` together; None where there is none."""
        rows = [row for row in sums if row[0]]
        if not rows:
            return None
        count = sum(row[0] for row in rows)
        mean = sum(row[1] for row in rows) / count
        variance = sum(row[2] for row in rows) / count - mean * mean
        return cls(
            num_samples=int(count),
            mean=mean,
            std=math.sqrt(max(0.0, variance)),
            least=min(row[3] for row in rows),
            largest=max(row[4] for row in rows),
        )


class GradientWatch:
    """Reads the gradients between gathering and applying them."""

    def __init__(self, adapters: Sequence[Adapter], *, max_norm: float) -> None:
        """`max_norm` is what gradients are clipped to. ValueError where nothing is trained."""
        self._parameters = {a.name: a.parameters for a in adapters if a.parameters}
        if not self._parameters:
            raise ValueError("No trainable parameters found")
        self._max_norm = max_norm

    def added(self, sums: Sums, *, grad_norm: float) -> dict[str, list[float]]:
        """The sums with the present gradients, whose norm before clipping was `grad_norm`."""
        return {
            name: _add(sums.get(name), sample)
            for name, sample in self.samples(grad_norm=grad_norm).items()
        }

    def samples(self, *, grad_norm: float) -> dict[str, float]:
        """By adapter; 0 where no gradient came (experts that no token went to)."""
        squares = dict.fromkeys(self._parameters, 0.0)
        owners, gradients = [], []
        for name, parameters in self._parameters.items():
            for parameter in parameters:
                if parameter.grad is not None:
                    owners.append(name)
                    gradients.append(parameter.grad)
        if gradients:
            # As torch's own clipping does it: one pass, one wait for the device.
            norms = torch.stack(torch._foreach_norm(gradients)).tolist()
            for name, norm in zip(owners, norms, strict=True):
                squares[name] += norm * norm
        unclipped = max(1.0, (grad_norm + _CLIP_EPSILON) / self._max_norm)
        return {
            name: unclipped * math.sqrt(squares[name] / sum(p.numel() for p in parameters))
            for name, parameters in self._parameters.items()
        }


def _add(sums: Sequence[float] | None, sample: float) -> list[float]:
    count, total, squares, least, largest = sums or (0, 0.0, 0.0, sample, sample)
    return [
        count + 1,
        total + sample,
        squares + sample * sample,
        min(least, sample),
        max(largest, sample),
    ]


def weight_magnitude(parameters: Sequence[torch.nn.Parameter]) -> float:
    """Root mean square over all numbers, computed on the CPU."""
    squares = sum(float(p.detach().cpu().double().square().sum()) for p in parameters)
    return math.sqrt(squares / sum(p.numel() for p in parameters))
