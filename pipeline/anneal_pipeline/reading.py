"""Long readings of files: every chunk is work that is told of, and a look at whether to go on."""

from __future__ import annotations

from dataclasses import dataclass

from anneal_pipeline.errors import StopRequestedError
from anneal_pipeline.observer import Observer


@dataclass(kw_only=True)
class Reading:
    """Called with the bytes of each chunk; raises `StopRequestedError` where a stop was asked for.

    For what can be read again from its beginning: nothing is kept of a reading that was stopped.
    """

    observer: Observer
    stage: str
    total: int = 0
    """Bytes in all; 0: unknown."""
    _done: int = 0

    def __call__(self, count: int) -> None:
        self._done += count
        self.observer.on_stage(self.stage, done=self._done, total=self.total, unit="bytes")
        if self.observer.should_stop():
            raise StopRequestedError
