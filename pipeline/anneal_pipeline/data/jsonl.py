"""Rows out of JSONL files: streamed, with the place of every row.

UTF-8 with or without byte order mark, UTF-16 with one; LF or CRLF; empty lines are passed over.
What cannot be read as a JSON object is handed on as a problem, so that it is counted and not lost.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anneal_pipeline.errors import DATASET_UNREADABLE, UserError

INVALID_JSON = "invalid-json"
NOT_AN_OBJECT = "not-an-object"
INVALID_ENCODING = "invalid-encoding"

_PREVIEW_CHARS = 200
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BINARY = {
    b"\x1f\x8b": "gzip",
    b"PK": "zip",
    b"PAR1": "Parquet",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a row stands; lines count from 1."""

    file: str
    line: int


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    place: Place
    fields: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that is not used, and why."""

    place: Place
    reason: str
    """One of the reason constants, in kebab-case."""
    detail: str
    """Completes the sentence "Row N of FILE ..."."""
    preview: str


def read_rows(path: Path) -> Iterator[SourceRow | BadRow]:
    """Yield the rows of one JSONL file in order."""
    encoding = _encoding_of(path)
    with path.open("r", encoding=encoding, errors="surrogateescape", newline="\n") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                text = line.strip()
                if text:
                    yield _parse(text, place=Place(file=path.name, line=number))
        except UnicodeError as error:
            raise UserError(
                DATASET_UNREADABLE,
                f"{path.name} is not readable as {encoding}: {error}; save it as UTF-8",
            ) from error


def _encoding_of(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    for magic, kind in _BINARY.items():
        if start.startswith(magic):
            raise UserError(
                DATASET_UNREADABLE,
                f"{path.name} is a {kind} file, expected JSONL (one JSON object per line); "
                "convert it first",
            )
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def _parse(text: str, *, place: Place) -> SourceRow | BadRow:
    if not text.isascii() and any("\udc80" <= char <= "\udcff" for char in text):
        return BadRow(
            place=place,
            reason=INVALID_ENCODING,
            detail="is not valid UTF-8",
            preview=preview_of(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")),
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        detail = f"is not valid JSON ({error})"
        return BadRow(place=place, reason=INVALID_JSON, detail=detail, preview=preview_of(text))
    if not isinstance(value, dict):
        detail = f"is a JSON {type(value).__name__}, expected an object"
        return BadRow(place=place, reason=NOT_AN_OBJECT, detail=detail, preview=preview_of(text))
    return SourceRow(place=place, fields=value)


def preview_of(value: object) -> str:
    """The start of a row for people to recognise it by."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _PREVIEW_CHARS else text[: _PREVIEW_CHARS - 3] + "..."
