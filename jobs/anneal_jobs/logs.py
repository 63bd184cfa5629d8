"""Logging of the trainer: one line per event, to the console and to a file that is kept."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from anneal_jobs.redaction import redact
from anneal_pipeline.checkpoint.store import BlobFolder

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_QUIET = ("urllib3", "botocore", "boto3", "s3transfer", "httpx", "httpcore", "filelock", "alembic")
TAIL_BYTES = 5 << 20
"""Of a log for people, so much from its end is uploaded, in whole lines."""
_FOR_PROGRAMS = ".jsonl"


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
    """The last whole lines of a log file, up to `TAIL_BYTES`."""
    with path.open("rb") as file:
        begin = max(0, file.seek(0, 2) - TAIL_BYTES)
        file.seek(max(0, begin - 1))
        data = file.read()
    # What was begun with is the rest of a line, or the end of the one before.
    _, has_end, rest = data.partition(b"\n")
    return rest if begin and has_end else data


def is_kept_whole(path: Path) -> bool:
    """True for what programs read: a log of events without its first ones tells a wrong story.

    Its lines are masked as they are written, and there may be more of them than memory holds.
    """
    return path.suffix == _FOR_PROGRAMS


def shown(path: Path) -> bytes:
    """What of a log for people they get to see: its end, with secrets masked.

    Libraries print past our own handlers, so that the file itself has them still.
    """
    return redact(tail_of(path).decode("utf-8", "replace")).encode()


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Logs by name, those that are kept whole last: time may end before they are through."""
    return sorted(paths, key=lambda path: (is_kept_whole(path), path.name))


def store_log(path: Path, folder: BlobFolder, *, name: str) -> None:
    """Put a log into `folder`: of one for people the end, of one for programs the file as it is."""
    if is_kept_whole(path):
        folder.upload(path, name)
    else:
        folder.write(name, shown(path))
