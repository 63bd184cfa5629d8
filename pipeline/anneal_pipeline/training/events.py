"""What happens in training, told once: by the first rank for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from anneal_pipeline.observer import Observer
from anneal_pipeline.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Events:
    observer: Observer
    ranks: Ranks

    def tell(self, event: str, message: str, **fields: Any) -> None:
        if self.ranks.is_first:
            self.observer.on_event(event, message, fields)
