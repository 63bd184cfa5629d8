"""The rows of a dataset in the order they are judged: held-out files first, then those to train on.

Held-out rows come first so that a training row that repeats one of them is the one left out. How
rows are read is decided before, by the training rows alone: what is held out decides nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.files import TEST, TRAIN, VALIDATION, DatasetFiles
from anneal_pipeline.data.joining import joined
from anneal_pipeline.data.layout import (
    NUM_ROWS_LOOKED_AT,
    Layout,
    choose_layout,
    require_same_layout,
)
from anneal_pipeline.data.readers.choice import format_of, read_rows
from anneal_pipeline.data.rows import BadRow, SourceRow
from anneal_pipeline.data.turns import to_conversation


@dataclass
class Source:
    config: DatasetConfig
    files: DatasetFiles
    labels: Sequence[str] = ()
    """Columns whose values the split needs."""
    layout: Layout | None = None
    """Known once the first rows were read."""
    formats: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[tuple[str, Conversation | BadRow]]:
        """(split of the file, row); may be gone through again and is then the same."""
        if self.layout is None:
            self.layout = self._recognised()
        columns = self.config.columns
        column = columns.conversation_id if columns else None
        for split in (TEST, VALIDATION, TRAIN):
            for path in self.files.of(split):
                rows = self._open(path)
                head = list(itertools.islice(rows, NUM_ROWS_LOOKED_AT))
                if split != TRAIN and self.layout is not None:
                    require_same_layout(self.config, self.layout, list(_readable(head)))
                for group in joined(itertools.chain(head, rows), column=column):
                    yield split, self._read(group)

    def _open(self, path: Path) -> Iterator[SourceRow | BadRow]:
        encoding = self.config.encoding
        chosen: str = self.config.format
        if chosen == "auto":
            chosen = format_of(path, encoding=encoding)
        if chosen not in self.formats:
            self.formats.append(chosen)
        return _read_as(self.files.names()[path], path, wanted=chosen, encoding=encoding)

    def _recognised(self) -> Layout | None:
        """The layout of the first training rows that can be read; None where none can."""
        for path in self.files.train:
            rows = self._open(path)
            head = list(_readable(itertools.islice(rows, NUM_ROWS_LOOKED_AT)))
            found = head or list(itertools.islice(_readable(rows), 1))
            if found:
                return choose_layout(self.config, found)
        return None

    def _read(self, group: tuple[SourceRow, ...] | BadRow) -> Conversation | BadRow:
        if isinstance(group, BadRow):
            return group
        # Without a training row to go by the job ends; this is for the sentence it ends with.
        layout = self.layout or choose_layout(self.config, group)
        return to_conversation(group, layout, labels=self.labels)

    def address(self) -> str:
        """Where the training rows come from, as the job names it."""
        files = self.config.files
        return self.config.uri or (files.train if files else "")


def _readable(rows: Iterable[SourceRow | BadRow]) -> Iterator[SourceRow]:
    return (row for row in rows if isinstance(row, SourceRow))


def _read_as(name: str, path: Path, *, wanted: str, encoding: str) -> Iterator[SourceRow | BadRow]:
    """The rows of a file, whose places call it `name`."""
    for row in read_rows(path, wanted=wanted, encoding=encoding):
        yield row if row.place.file == name else replace(row, place=replace(row.place, file=name))
