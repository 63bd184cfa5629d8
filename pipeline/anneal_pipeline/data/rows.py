"""A row as it was read, and a row that is not used: both know where they stand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

INVALID_JSON = "invalid-json"
NOT_AN_OBJECT = "not-an-object"
INVALID_ENCODING = "invalid-encoding"
WRONG_COLUMN_COUNT = "wrong-column-count"
BROKEN_CONVERSATION = "broken-conversation"
"""Of the rows that are left out because another one of their conversation is."""

_PREVIEW_CHARS = 200


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a row stands, counted from 1: the line of a JSONL file, the row of any other.

    The header of a CSV file is its row 1, as spreadsheets show it. No two rows of a dataset have
    the same place.
    """

    file: str
    """As `DatasetFiles.names` calls it."""
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
    companions: tuple[BadRow, ...] = ()
    """The other rows of its conversation, which are left out with it."""

    @property
    def num_rows(self) -> int:
        return 1 + len(self.companions)

    def rows(self) -> list[BadRow]:
        """It and its companions in the order of the file."""
        return sorted((self, *self.companions), key=lambda row: row.place.line)


def preview_of(value: object) -> str:
    """The start of a row for people to recognise it by."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _PREVIEW_CHARS else text[: _PREVIEW_CHARS - 3] + "..."


def with_companions(bad: BadRow, rows: Sequence[SourceRow]) -> BadRow:
    """The row with the others of its conversation, each of which says what it goes with."""
    detail = f"is of a conversation whose row {bad.place.line} {bad.detail}"
    companions = tuple(
        BadRow(
            place=row.place,
            reason=BROKEN_CONVERSATION,
            detail=detail,
            preview=preview_of(row.fields),
        )
        for row in rows
        if row.place != bad.place
    )
    return replace(bad, companions=companions)
