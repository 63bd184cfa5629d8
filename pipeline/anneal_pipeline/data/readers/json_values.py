"""JSON that is not one object per line: an array of objects, or objects over several lines.

ijson reads one element after the other, so that memory does not grow with the file. There are no
line numbers in it: places count the elements.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import ijson

from anneal_pipeline.data.readers.jsonl import read_jsonl, row_of
from anneal_pipeline.data.readers.streams import open_utf8
from anneal_pipeline.data.rows import BadRow, Place, SourceRow
from anneal_pipeline.errors import DATASET_UNREADABLE, UserError

_HEAD_BYTES = 1 << 16


def read_json(path: Path, *, encoding: str) -> Iterator[SourceRow | BadRow]:
    """Read a .json file, which may hold an array, one object, or JSON lines by another name."""
    with open_utf8(path, encoding=encoding) as stream:
        head = stream.peek(_HEAD_BYTES).lstrip()
        first_line = head.partition(b"\n")[0]
    if not head:
        return iter(())
    if head.startswith(b"["):
        return _values(path, prefix="item", encoding=encoding)
    if _is_value(first_line):
        return read_jsonl(path, encoding=encoding)
    return _values(path, prefix="", encoding=encoding)


def _is_value(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        # A line longer than what was looked at is one of many rows, or the one object of a file.
        return line.startswith(b"{") and len(line) >= _HEAD_BYTES
    return True


def _values(path: Path, *, prefix: str, encoding: str) -> Iterator[SourceRow | BadRow]:
    number = 0
    with open_utf8(path, encoding=encoding) as stream:
        values = ijson.items(stream, prefix, use_float=True, multiple_values=not prefix)
        try:
            for number, value in enumerate(values, start=1):
                yield row_of(value, place=Place(file=path.name, line=number))
        except ijson.JSONError as error:
            cause = " ".join(str(error).split("\n")[0].split())
            raise UserError(
                DATASET_UNREADABLE,
                f"{path.name} is not valid JSON behind row {number} ({cause}); correct it there, "
                "set dataset.encoding if it is not UTF-8, or write one object per line (JSONL), "
                "where a damaged row does not hide the others",
            ) from error
