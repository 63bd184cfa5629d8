"""Finding and fetching a dataset: one file, a folder, or files that are already split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from anneal_jobs.storage.meter import OnBytes
from anneal_jobs.storage.source import SourceAccess, SourceFile, fetch_files, list_source
from anneal_jobs.storage.uri import parse_uri
from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.data.files import TEST, TRAIN, VALIDATION, DatasetFiles, arrange, no_rows
from anneal_pipeline.data.formats import SUFFIXES, is_data, is_saved
from anneal_pipeline.errors import DATASET_NOT_FOUND, UserError

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
    fetched: dict[str, DatasetFiles] = {}
    for side, files in find_dataset(config, access=access).items():
        (to / side).mkdir(parents=True, exist_ok=True)
        paths = fetch_files(list(files), to=to / side, on_bytes=on_bytes)
        names = (file.name for file in files)
        fetched[side] = arrange(dict(zip(names, paths, strict=True)))
    if _UNSPLIT in fetched:
        return fetched[_UNSPLIT]
    return DatasetFiles(**{side: _all_of(files) for side, files in fetched.items()})


def _all_of(files: DatasetFiles) -> tuple[Path, ...]:
    """A side that the job names is that side, however its files are called."""
    return files.train + files.validation + files.test


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
    takes_all = len(found) == 1 or is_saved([file.name for file in found])
    files = [file for file in found if takes_all or is_data(file.name)]
    if not files:
        raise UserError(
            DATASET_NOT_FOUND,
            f"The folder {uri} holds no {', '.join(SUFFIXES)} file (found {found[0].name} and "
            f"{len(found) - 1} more); dataset.uri must name a data file or a folder of them.",
        )
    if not any(file.size for file in files):
        raise no_rows(str(uri))
    return tuple(files)
