"""CSV through Arrow, block by block; every cell is text, an empty one is absent.

Cells are read as bytes and decoded here, so that one damaged cell costs one row. Comma, semicolon
and tab are told apart by the header.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv

from anneal_pipeline.data.readers.encodings import undecodable, why_undecodable
from anneal_pipeline.data.readers.streams import damage_named, open_utf8
from anneal_pipeline.data.rows import (
    WRONG_COLUMN_COUNT,
    BadRow,
    Place,
    SourceRow,
    preview_of,
)
from anneal_pipeline.errors import DATASET_UNREADABLE, UserError

_DELIMITERS = (",", ";", "\t")
_BLOCK_BYTES = 1 << 22
"""A row of more than two blocks cannot be read; Arrow holds up to 32 of them at a time."""


def read_csv(path: Path, *, encoding: str) -> Iterator[SourceRow | BadRow]:
    with open_utf8(path, encoding=encoding) as stream, damage_named(path):
        start = stream.peek(_BLOCK_BYTES)
        if not start.partition(b"\n")[0].strip():
            return
        delimiter, columns = _header_of(start)
        _require_names(columns, path=path, encoding=encoding)
        bad: list[arrow_csv.InvalidRow] = []

        def skip(row: arrow_csv.InvalidRow) -> str:
            bad.append(row)
            return "skip"

        reader = arrow_csv.open_csv(
            stream,
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter,
                newlines_in_values=True,
                ignore_empty_lines=False,
                invalid_row_handler=skip,
            ),
            convert_options=arrow_csv.ConvertOptions(
                check_utf8=False,
                column_types=dict.fromkeys(columns, pa.binary()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        # Arrow would guess the type of a column by another name, and give numbers.
        if reader.schema.names != columns:
            raise UserError(
                DATASET_UNREADABLE,
                f"{path.name} has a first row, which must name the columns, that cannot be told "
                "apart into names; close its quotes, and set dataset.encoding if it is not UTF-8",
            )
        yield from _rows(reader, bad, path=path, encoding=encoding)


def _header_of(start: bytes) -> tuple[str, list[str]]:
    """The delimiter that makes most columns of the first row, and their names, where surrogates
    stand for bytes that are no UTF-8."""
    text = start.decode("utf-8", "surrogateescape")
    columns = {mark: _first_row(text, delimiter=mark) for mark in _DELIMITERS}
    delimiter = max(_DELIMITERS, key=lambda mark: len(columns[mark]))
    return delimiter, columns[delimiter]


def _first_row(text: str, *, delimiter: str) -> list[str]:
    """The cells up to the first line end outside quotes."""
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error:  # a quote that nothing closes
        return []


def _require_names(names: list[str], *, path: Path, encoding: str) -> None:
    for name in names:
        data = name.encode("utf-8", "surrogateescape")
        shown = data.decode("utf-8", "replace")
        if shown != name:
            raise UserError(
                DATASET_UNREADABLE,
                f"{path.name} has the column {shown!r} in its first row, which is "
                f"{why_undecodable(data, encoding=encoding)}",
            )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(
            DATASET_UNREADABLE,
            f"{path.name} has the column {repeated[0]!r} twice in its first row, which must name "
            "the columns; give each a name of its own",
        )


def _rows(
    batches: Iterator[pa.RecordBatch],
    bad: list[arrow_csv.InvalidRow],
    *,
    path: Path,
    encoding: str,
) -> Iterator[SourceRow | BadRow]:
    """Rows in the order of the file: Arrow tells of the bad ones of a block before its rows."""
    number = 2
    for batch in batches:
        for cells in batch.to_pylist():
            while bad and bad[0].number == number:
                yield _wrong_count(bad.pop(0), path=path)
                number += 1
            if any(value is not None for value in cells.values()):
                yield _row(cells, place=Place(file=path.name, line=number), encoding=encoding)
            number += 1
    for row in bad:
        yield _wrong_count(row, path=path)


def _wrong_count(row: arrow_csv.InvalidRow, *, path: Path) -> BadRow:
    return BadRow(
        place=Place(file=path.name, line=row.number),
        reason=WRONG_COLUMN_COUNT,
        detail=f"has {row.actual_columns} cells, the first row has {row.expected_columns}",
        preview=preview_of(row.text),
    )


def _row(cells: dict[str, bytes | None], *, place: Place, encoding: str) -> SourceRow | BadRow:
    fields: dict[str, Any] = {}
    for name, value in cells.items():
        if value is None:
            continue
        try:
            fields[name] = value.decode("utf-8")
        except UnicodeDecodeError:
            what = f"has a cell in column {name} that is"
            return undecodable(value, place=place, what=what, encoding=encoding)
    return SourceRow(place=place, fields=fields)
