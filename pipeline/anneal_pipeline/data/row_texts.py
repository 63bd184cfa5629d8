"""What a row as it was written has of text, without what its template adds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def texts_of(row: Mapping[str, Any]) -> Iterator[str]:
    """The texts of `row` that are not empty; calls and definitions of tools as JSON."""
    values = [
        value
        for message in row.get("messages", ())
        for name, value in message.items()
        if name != "role"
    ]
    for value in (*values, row.get("tools"), row.get("text")):
        if value:
            yield value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
