"""What the diagnoses look at: facts of a step, and of the plan it was made by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """Where the time of a step went, on the clock of the thread that trains.

    No device is waited for but where a step has to: the norm of the gradients is read before the
    update. So a GPU's passes are counted in full, and of the update what it took to give it out.
    """

    data: float
    """Choosing rows and laying them out."""
    gradients: float
    """Forward and backward passes, ranks' sums and clipping."""
    update: float

    @property
    def total(self) -> float:
        return self.data + self.gradients + self.update


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """What a step looked like; `losses` end with its own, and so do `grad_norms` or `overflows`."""

    step: int
    losses: Sequence[float]
    grad_norms: Sequence[float]
    """Of steps that moved the adapters."""
    overflows: Sequence[int]
    """Steps that loss scaling left out."""
    rate: float
    peak_rate: float
    memory_bytes: int
    num_tokens: int
    seconds: StepSeconds

    @property
    def has_overflowed(self) -> bool:
        return self.step in self.overflows


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What the memory plan said before the run."""

    num_bytes: int
    """All that this process holds at its greatest need."""
    rows: int
    """Sequences per forward pass."""
    rows_with_room: int
    """How many more there is room for at once, `rows` included; `rows` where that was not asked."""
