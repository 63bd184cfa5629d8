"""Logging of the trainer: one line per event, to the console and to a file that is kept."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from anneal_jobs.redaction import redact

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_QUIET = ("urllib3", "botocore", "boto3", "s3transfer", "httpx", "httpcore", "filelock", "alembic")
TAIL_BYTES = 5 << 20
"""Of a log file, so much from its end is uploaded."""


class _MaskingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def log_to(path: Path, *, with_console: bool) -> None:
    """Send INFO and above to `path`, and to stderr where nothing else is shown there."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8")]
    if with_console:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(_MaskingFormatter(_FORMAT))
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


def shown_tail(path: Path) -> bytes:
    """The same with secrets masked: what libraries print past our own handlers has them still."""
    return redact(tail_of(path).decode("utf-8", "replace")).encode()
