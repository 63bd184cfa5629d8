"""Parquet files and folders that `datasets` saved to disk, batch by batch.

Arrow gives all structs of a column the same keys and fills the absent ones with null: keys that
hold null inside a cell are taken out again, so that no tool gets parameters it never had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from anneal_pipeline.data.formats import SAVED_MARK
from anneal_pipeline.data.readers.streams import damage_named
from anneal_pipeline.data.rows import Place, SourceRow
from anneal_pipeline.errors import DATASET_UNREADABLE, UserError

_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20


def read_parquet(path: Path) -> Iterator[SourceRow]:
    # Without a buffer, Arrow reads whole columns of a row group, which may be the whole file.
    with (
        damage_named(path),
        parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file,
    ):
        yield from _rows(file.iter_batches(batch_size=_BATCH_ROWS), name=path.name)


def read_saved(folder: Path) -> Iterator[SourceRow]:
    # Imported here because it takes seconds, and few datasets need it.
    from datasets import load_from_disk

    if not (folder / SAVED_MARK).is_file():
        raise UserError(
            DATASET_UNREADABLE,
            f"The folder {folder.name} holds no {SAVED_MARK}, so it was not made by "
            "Dataset.save_to_disk; name a data file, or save the dataset anew",
        )
    with damage_named(folder):
        dataset = load_from_disk(str(folder)).with_format("arrow")
        yield from _rows(dataset.iter(batch_size=_BATCH_ROWS), name=folder.name)


def _rows(batches: Iterable[pa.RecordBatch | pa.Table], *, name: str) -> Iterator[SourceRow]:
    number = 0
    for batch in batches:
        for cells in batch.to_pylist():
            number += 1
            fields = {key: _without_nulls(cell) for key, cell in cells.items() if cell is not None}
            yield SourceRow(place=Place(file=name, line=number), fields=fields)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
