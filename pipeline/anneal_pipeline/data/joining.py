"""Rows that stand in a file one after the other and are turns of one conversation.

Only neighbours are joined, so that no more than one conversation is in memory; a conversation that
goes on further down is the user's mistake, because joined by halves it would train answers to
questions that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator

from anneal_pipeline.data.row_error import BROKEN_CONVERSATION
from anneal_pipeline.data.rows import BadRow, SourceRow, preview_of
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
    has_hole = is_broken = False
    for row in rows:
        if isinstance(row, BadRow):
            has_hole = True
            yield row
            continue
        key = _key(row, column)
        if current and key is not None and key == current_key:
            is_broken |= has_hole
            current.append(row)
            continue
        yield from _closed(current, is_broken=is_broken)
        if key is not None:
            _require_new(row, column, is_new=key not in ended)
            ended.add(key)
        current, current_key = [row], key
        has_hole = is_broken = False
    yield from _closed(current, is_broken=is_broken)


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


def _closed(rows: list[SourceRow], *, is_broken: bool) -> Iterator[tuple[SourceRow, ...] | BadRow]:
    if not rows:
        return
    if not is_broken:
        yield tuple(rows)
        return
    yield BadRow(
        place=rows[0].place,
        reason=BROKEN_CONVERSATION,
        detail=f"begins a conversation up to row {rows[-1].place.line} in which a row cannot be "
        "read, so that all of it is left out",
        preview=preview_of(rows[0].fields),
    )
