"""Rows that stand in a file one after the other and are turns of one conversation.

Only neighbours are joined, so that no more than one conversation is in memory; a conversation that
goes on further down is the user's mistake, because joined by halves it would train answers to
questions that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace

from anneal_pipeline.data.rows import BadRow, SourceRow, preview_of, with_companions
from anneal_pipeline.errors import DATASET_ROWS_INVALID, UserError


def joined(
    rows: Iterable[SourceRow | BadRow], *, column: str | None
) -> Iterator[tuple[SourceRow, ...] | BadRow]:
    """The rows of one file, those of equal value in `column` together.

    A row without a value stands alone, and so does every row where there is no column. A row that
    cannot be read within a conversation takes the conversation with it.
    """
    if column is None:
        yield from (row if isinstance(row, BadRow) else (row,) for row in rows)
        return
    ended: set[int] = set()
    current: list[SourceRow] = []
    current_key = None
    unread: BadRow | None = None
    hole: BadRow | None = None
    for row in rows:
        if isinstance(row, BadRow):
            unread = unread or row
            yield row
            continue
        key = _key(row, column)
        if current and key is not None and key == current_key:
            hole = unread
            current.append(row)
            continue
        yield from _closed(current, hole=hole)
        if key is not None:
            _require_new(row, column, is_new=key not in ended)
            ended.add(key)
        current, current_key = [row], key
        unread = hole = None
    yield from _closed(current, hole=hole)


def _key(row: SourceRow, column: str) -> int | None:
    """Eight bytes that stand for the value; None where the row has none."""
    value = row.fields.get(column)
    if value is None:
        return None
    text = json.dumps(value, sort_keys=True, default=repr)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _require_new(row: SourceRow, column: str, *, is_new: bool) -> None:
    if not is_new:
        raise UserError(
            DATASET_ROWS_INVALID,
            f"Row {row.place.line} of {row.place.file} goes on with the conversation "
            f"{preview_of(row.fields[column])} ({column}), whose rows ended further up; sort the "
            "file so that the rows of a conversation follow each other",
        )


def _closed(
    rows: list[SourceRow], *, hole: BadRow | None
) -> Iterator[tuple[SourceRow, ...] | BadRow]:
    """The conversation; or its rows as left out, where a row among them could not be read."""
    if not rows:
        return
    if hole is None:
        yield tuple(rows)
        return
    first, *others = with_companions(hole, rows).companions
    yield replace(first, companions=tuple(others))
