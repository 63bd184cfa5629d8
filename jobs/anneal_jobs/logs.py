"""Logging of the trainer: one line per event, to the console and to a file that is kept."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_QUIET = ("urllib3", "botocore", "boto3", "s3transfer", "httpx", "httpcore", "filelock", "alembic")
TAIL_BYTES = 5 << 20
"""Of a log file, so much from its end is uploaded."""


def log_to(path: Path | None, *, console_level: int = logging.INFO) -> None:
    """Send INFO and above to `path` and `console_level` and above to stderr."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(console_level)
    handlers: list[logging.Handler] = [console]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def tail_of(path: Path) -> bytes:
    """The last `TAIL_BYTES` of a log file."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        return file.read()
