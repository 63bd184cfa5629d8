"""Copying a growing log file to the console.

The ranks write files; Ray's own forwarding would mix them with notices of its own actors.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TextIO

_POLL_SECONDS = 0.5


class LogFollower:
    def __init__(self, path: Path, *, to: TextIO = sys.stderr) -> None:
        self._path = path
        self._to = to
        self._closing = threading.Event()
        self._position = 0
        self._thread = threading.Thread(target=self._run, name="log-follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Copy what is left and end."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            self._copy()
        self._copy()

    def _copy(self) -> None:
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._position)
            self._to.write(file.read())
            self._position = file.tell()
        self._to.flush()
