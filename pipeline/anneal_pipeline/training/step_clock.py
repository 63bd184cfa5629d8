"""Where the time of a step goes, by a clock that is only read: no device is waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from anneal_pipeline.training.diagnoses.facts import StepSeconds

Part = Literal["data", "gradients", "update"]


@dataclass(kw_only=True)
class StepClock:
    clock: Callable[[], float]
    _last: float = field(init=False, default=0.0)
    _seconds: dict[Part, float] = field(init=False, default_factory=dict)

    def begin(self) -> None:
        self._last, self._seconds = self.clock(), {}

    def count(self, part: Part) -> None:
        """What went by since the last call was for `part`."""
        now = self.clock()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> StepSeconds:
        """Of the step since `begin`, with what was tried in vain."""
        found = self._seconds
        return StepSeconds(
            data=found.get("data", 0.0),
            gradients=found.get("gradients", 0.0),
            update=found.get("update", 0.0),
        )
