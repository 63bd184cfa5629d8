"""The formats a dataset may have, and how its files are named. Light: no reader is imported."""

from __future__ import annotations

JSONL = "jsonl"
JSON = "json"
CSV = "csv"
PARQUET = "parquet"
SAVED = "datasets"
"""A folder that `datasets` saved to disk."""

SUFFIXES = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": JSON,
    ".csv": CSV,
    ".tsv": CSV,
    ".parquet": PARQUET,
}
COMPRESSION_SUFFIXES = (".gz", ".zst", ".zstd")
DATA_SUFFIXES = tuple(SUFFIXES) + tuple(
    f"{suffix}{compressed}"
    for suffix, name in SUFFIXES.items()
    if name != PARQUET
    for compressed in COMPRESSION_SUFFIXES
)
"""Endings of the files of a folder that are read as data."""

SAVED_MARK = "state.json"
"""What `Dataset.save_to_disk` leaves in its folder."""
SAVED_SPLITS_MARK = "dataset_dict.json"
"""What `DatasetDict.save_to_disk` leaves in its folder: the names of its splits."""
_NO_DATA = (SAVED_MARK, SAVED_SPLITS_MARK, "dataset_info.json", "dataset_infos.json")
"""Files beside the data that describe it."""


def is_data(name: str) -> bool:
    """Whether a file of a folder is read as data."""
    own = name.rpartition("/")[2].lower()
    return own.endswith(DATA_SUFFIXES) and own not in _NO_DATA


def is_saved(names: list[str]) -> bool:
    """Whether a folder with these files was made by `datasets`."""
    return SAVED_MARK in names or SAVED_SPLITS_MARK in names
