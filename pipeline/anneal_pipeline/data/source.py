"""The rows of a dataset in the order they are judged: held-out files first, then those to train on.

Held-out rows come first so that a training row that repeats one of them is the one left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.files import TEST, TRAIN, VALIDATION, DatasetFiles
from anneal_pipeline.data.joining import joined
from anneal_pipeline.data.layout import NUM_ROWS_LOOKED_AT, Layout, choose_layout
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
        names = self.files.names()
        for split in (TEST, VALIDATION, TRAIN):
            for path in self.files.of(split):
                chosen = format_of(path) if self.config.format == "auto" else self.config.format
                if chosen not in self.formats:
                    self.formats.append(chosen)
                rows = _read_as(names[path], path, wanted=chosen)
                head = list(itertools.islice(rows, NUM_ROWS_LOOKED_AT))
                good = [row for row in head if isinstance(row, SourceRow)]
                if good:
                    self._recognised(good)
                columns = self.config.columns
                column = columns.conversation_id if columns else None
                for group in joined(itertools.chain(head, rows), column=column):
                    yield split, self._read(group)

    def _recognised(self, rows: Sequence[SourceRow]) -> Layout:
        """The layout of the dataset; the first rows that can be read decide it."""
        if self.layout is None:
            self.layout = choose_layout(self.config, rows)
        return self.layout

    def _read(self, group: tuple[SourceRow, ...] | BadRow) -> Conversation | BadRow:
        if isinstance(group, BadRow):
            return group
        return to_conversation(group, self._recognised(group), labels=self.labels)

    def address(self) -> str:
        """Where the training rows come from, as the job names it."""
        files = self.config.files
        return self.config.uri or (files.train if files else "")


def _read_as(name: str, path: Path, *, wanted: str) -> Iterator[SourceRow | BadRow]:
    """The rows of a file, whose places call it `name`."""
    for row in read_rows(path, wanted=wanted):
        yield row if row.place.file == name else replace(row, place=replace(row.place, file=name))
