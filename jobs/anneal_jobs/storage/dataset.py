"""Finding and fetching a dataset: one file, a folder of files, or files that are already split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from anneal_jobs.storage.meter import OnBytes
from anneal_jobs.storage.source import SourceAccess, SourceFile, fetch_files, list_source
from anneal_jobs.storage.uri import parse_uri
from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.data.files import TEST, TRAIN, VALIDATION, DatasetFiles, no_rows
from anneal_pipeline.errors import DATASET_NOT_FOUND, UserError

_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_UNSPLIT = "all"


def find_dataset(
    config: DatasetConfig, *, access: SourceAccess
) -> Mapping[str, tuple[SourceFile, ...]]:
    """The dataset's files by side, or why there is nothing to train on at its addresses."""
    if config.files is None:
        addresses = {_UNSPLIT: config.uri}
    else:
        files = config.files
        addresses = {TRAIN: files.train, VALIDATION: files.validation, TEST: files.test}
    return {
        side: _find_side(address, revision=config.revision, access=access)
        for side, address in addresses.items()
        if address is not None
    }


def fetch_dataset(
    config: DatasetConfig, *, to: Path, access: SourceAccess, on_bytes: OnBytes
) -> DatasetFiles:
    """Put the dataset's files below `to`, keeping their names, which appear in messages."""
    fetched: dict[str, tuple[Path, ...]] = {}
    for side, files in find_dataset(config, access=access).items():
        (to / side).mkdir(parents=True, exist_ok=True)
        fetched[side] = tuple(fetch_files(list(files), to=to / side, on_bytes=on_bytes))
    return DatasetFiles(
        train=fetched.get(_UNSPLIT, ()) + fetched.get(TRAIN, ()),
        validation=fetched.get(VALIDATION, ()),
        test=fetched.get(TEST, ()),
    )


def _find_side(
    address: str, *, revision: str | None, access: SourceAccess
) -> tuple[SourceFile, ...]:
    uri = parse_uri(address)
    found = list_source(
        uri, kind="dataset", revision=revision, not_found_reason=DATASET_NOT_FOUND, access=access
    )
    if not found:
        raise UserError(
            DATASET_NOT_FOUND,
            f"There is no dataset at {uri}: nothing lies at this address; correct dataset.uri or "
            "upload the file there.",
        )
    is_single = len(found) == 1
    files = [file for file in found if is_single or file.name.lower().endswith(_SUFFIXES)]
    if not files:
        raise UserError(
            DATASET_NOT_FOUND,
            f"The folder {uri} holds no {', '.join(_SUFFIXES)} file (found {found[0].name} and "
            f"{len(found) - 1} more); dataset.uri must name a data file or a folder of them.",
        )
    if not any(file.size for file in files):
        raise no_rows(str(uri))
    return tuple(files)
