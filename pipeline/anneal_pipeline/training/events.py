"""What happens in training, told once: by the first rank for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from anneal_pipeline.diagnosis import Diagnosis
from anneal_pipeline.observer import Observer
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.state import RunState


@dataclass(frozen=True, kw_only=True)
class Events:
    observer: Observer
    ranks: Ranks

    def tell(self, event: str, message: str, **fields: Any) -> None:
        if self.ranks.is_first:
            self.observer.on_event(event, message, fields)

    def diagnose(self, found: Iterator[Diagnosis], *, state: RunState) -> None:
        """Tell what the run has not told yet, which `state` remembers."""
        for diagnosis in found:
            if diagnosis.key not in state.told:
                state.told = [*state.told, diagnosis.key]
                if self.ranks.is_first:
                    diagnosis.tell(self.observer)
