"""Where training rows came from, for messages that name them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from anneal_pipeline.data.prepared import ROWS_NAME


def row_places(folder: Path, *, rows: Sequence[int]) -> list[str]:
    """`file:line` of the rows with these numbers in the prepared split `folder`, in their order."""
    places = dict.fromkeys(rows, "")
    with (folder / ROWS_NAME).open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number in places:
                row = json.loads(line)
                places[number] = f"{row['file']}:{row['line']}"
    return [places[row] for row in rows]
