"""JSON lines. Every line stands for itself: one that is damaged is counted, the others are read.

Read with the standard library's JSON and not with Arrow's, which gives no line numbers, ends at the
first bad line of a block, and fills in nulls where rows have different keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from anneal_pipeline.data.readers.encodings import undecodable
from anneal_pipeline.data.readers.streams import open_utf8
from anneal_pipeline.data.rows import (
    INVALID_JSON,
    NOT_AN_OBJECT,
    BadRow,
    Place,
    SourceRow,
    preview_of,
)


def read_jsonl(path: Path, *, encoding: str) -> Iterator[SourceRow | BadRow]:
    with open_utf8(path, encoding=encoding) as lines:
        for number, line in enumerate(lines, start=1):
            data = line.strip()
            if data:
                yield _parse(data, place=Place(file=path.name, line=number), encoding=encoding)


def _parse(data: bytes, *, place: Place, encoding: str) -> SourceRow | BadRow:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return undecodable(data, place=place, what="is", encoding=encoding)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        detail = f"is not valid JSON ({_words(error)})"
        return BadRow(place=place, reason=INVALID_JSON, detail=detail, preview=preview_of(text))
    return row_of(value, place=place)


def _words(error: Exception) -> str:
    """Of the decoder, whose own count of lines would stand beside that of the file."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return str(error)


def row_of(value: object, *, place: Place) -> SourceRow | BadRow:
    if not isinstance(value, dict):
        detail = f"is a JSON {type(value).__name__}, expected an object"
        return BadRow(place=place, reason=NOT_AN_OBJECT, detail=detail, preview=preview_of(value))
    return SourceRow(place=place, fields=value)
