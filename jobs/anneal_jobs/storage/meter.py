"""Counting bytes while files are copied, so that one huge file is no silence."""

from __future__ import annotations

import threading
from collections.abc import Callable

OnBytes = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); what it raises ends the copy."""
OnChunk = Callable[[int], None]
"""Called with the bytes that have just come or gone; negative where a part is sent again."""


class ByteMeter:
    """Adds up the chunks of several files, whose transfers call from threads of their own."""

    def __init__(self, total: int, on_bytes: OnBytes) -> None:
        self._total = total
        self._on_bytes = on_bytes
        self._done = 0
        self._settled = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Report that nothing is done yet."""
        self._on_bytes(0, self._total)

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            done = min(self._done, self._total)
        self._on_bytes(done, self._total)

    def settle(self, size: int) -> None:
        """One more file of `size` bytes is whole, whether its chunks were told of or not."""
        with self._lock:
            self._settled += size
            self._done = self._settled
        self._on_bytes(self._settled, self._total)
