"""The ends of the components' logs."""

import os
from pathlib import Path

LINES = 15
# More than the longest lines that components write, times the lines shown.
_READ_BYTES = 64 * 1024


def tail(log: Path, *, lines: int = LINES) -> str:
    """The last lines of a log; a sentence when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _READ_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return f"(there is no {log})"
    return "\n".join(text.splitlines()[-lines:])
