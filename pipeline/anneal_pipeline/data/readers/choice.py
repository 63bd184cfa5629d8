"""Which reader a file takes: the one `dataset.format` names, or the one its name and start tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

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
from anneal_pipeline.data.readers.encodings import AUTO
from anneal_pipeline.data.readers.json_values import read_json
from anneal_pipeline.data.readers.jsonl import read_jsonl
from anneal_pipeline.data.readers.streams import open_utf8
from anneal_pipeline.data.rows import BadRow, SourceRow
from anneal_pipeline.errors import DATASET_UNREADABLE, UserError


class _TextReader(Protocol):
    def __call__(self, path: Path, *, encoding: str) -> Iterator[SourceRow | BadRow]: ...


_TEXT_READERS: Mapping[str, _TextReader] = {JSONL: read_jsonl, JSON: read_json, CSV: read_csv}
_BINARY_READERS: Mapping[str, Callable[[Path], Iterator[SourceRow]]] = {
    PARQUET: read_parquet,
    SAVED: read_saved,
}
_PARQUET_MAGIC = b"PAR1"


def read_rows(
    path: Path, *, wanted: str = "auto", encoding: str = AUTO
) -> Iterator[SourceRow | BadRow]:
    """Yield the rows of one file (or saved folder) in order, with what cannot be read as a row."""
    chosen = format_of(path, encoding=encoding) if wanted == "auto" else wanted
    if (chosen == SAVED) != path.is_dir():
        kind = "a folder" if path.is_dir() else "a file"
        raise UserError(
            DATASET_UNREADABLE,
            f"{path.name} is {kind}, which dataset.format {chosen} does not read; "
            "set dataset.format to auto",
        )
    if chosen in _TEXT_READERS:
        return _TEXT_READERS[chosen](path, encoding=encoding)
    if encoding != AUTO:
        raise UserError(
            DATASET_UNREADABLE,
            f"{path.name} is of the format {chosen}, whose text is always UTF-8: dataset.encoding "
            f"{encoding} has no effect on it; remove it",
        )
    return _BINARY_READERS[chosen](path)


def format_of(path: Path, *, encoding: str = AUTO) -> str:
    """Recognise the format; the start of the file outweighs a name that says nothing."""
    if path.is_dir():
        return SAVED
    with path.open("rb") as file:
        if file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
            return PARQUET
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in COMPRESSION_SUFFIXES]
    if suffixes and suffixes[-1] in SUFFIXES:
        return SUFFIXES[suffixes[-1]]
    with open_utf8(path, encoding=encoding) as stream:
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
