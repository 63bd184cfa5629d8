"""Which reader a file takes: the one `dataset.format` names, or the one its name and start tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from anneal_pipeline.data.formats import (
    COMPRESSION_SUFFIXES,
    CSV,
    JSON,
    JSONL,
    PARQUET,
    SAVED,
    SUFFIXES,
)
from anneal_pipeline.data.readers.arrow_table import read_parquet, read_saved
from anneal_pipeline.data.readers.csv_table import read_csv
from anneal_pipeline.data.readers.json_values import read_json
from anneal_pipeline.data.readers.jsonl import read_jsonl
from anneal_pipeline.data.readers.streams import open_utf8
from anneal_pipeline.data.rows import BadRow, SourceRow
from anneal_pipeline.errors import DATASET_UNREADABLE, UserError

_READERS: Mapping[str, Callable[[Path], Iterator[SourceRow | BadRow]]] = {
    JSONL: read_jsonl,
    JSON: read_json,
    CSV: read_csv,
    PARQUET: read_parquet,
    SAVED: read_saved,
}
_PARQUET_MAGIC = b"PAR1"


def read_rows(path: Path, *, wanted: str = "auto") -> Iterator[SourceRow | BadRow]:
    """Yield the rows of one file (or saved folder) in order, with what cannot be read as a row."""
    chosen = format_of(path) if wanted == "auto" else wanted
    if (chosen == SAVED) != path.is_dir():
        kind = "a folder" if path.is_dir() else "a file"
        raise UserError(
            DATASET_UNREADABLE,
            f"{path.name} is {kind}, which dataset.format {chosen} does not read; "
            "set dataset.format to auto",
        )
    return _READERS[chosen](path)


def format_of(path: Path) -> str:
    """Recognise the format; the start of the file outweighs a name that says nothing."""
    if path.is_dir():
        return SAVED
    with path.open("rb") as file:
        if file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
            return PARQUET
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in COMPRESSION_SUFFIXES]
    if suffixes and suffixes[-1] in SUFFIXES:
        return SUFFIXES[suffixes[-1]]
    with open_utf8(path) as stream:
        start = stream.peek(1).lstrip()
    if start[:1] in (b"[", b"{"):
        return JSON
    if not start:
        return JSONL
    raise UserError(
        DATASET_UNREADABLE,
        f"The name {path.name} does not tell its format and its start is neither JSON nor Parquet; "
        f"name it {', '.join(SUFFIXES)}, or set dataset.format",
    )
