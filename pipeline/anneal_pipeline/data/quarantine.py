"""The rows that were left out: every one in quarantine.jsonl, with its reason, and counted."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TextIO

from anneal_pipeline.data.rows import BROKEN_CONVERSATION, BadRow


@dataclass
class Quarantine:
    path: Path
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, BadRow] = field(default_factory=dict)
    """The first row of each reason, for messages."""
    _file: TextIO = field(init=False)

    def __enter__(self) -> Self:
        self._file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, bad: BadRow) -> None:
        """Write down the row and its companions, one line each."""
        for row in bad.rows():
            self._add(row)

    def _add(self, row: BadRow) -> None:
        self.counts[row.reason] += 1
        self.first.setdefault(row.reason, row)
        entry = {
            "file": row.place.file,
            "line": row.place.line,
            "reason": row.reason,
            "detail": row.detail,
            "preview": row.preview,
        }
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    @property
    def total(self) -> int:
        return self.counts.total()

    def main_cause(self) -> BadRow:
        """The first row of the most frequent reason of its own: companions follow from others."""
        reasons = [reason for reason, _ in self.counts.most_common()]
        return self.first[next(r for r in reasons if r != BROKEN_CONVERSATION)]
