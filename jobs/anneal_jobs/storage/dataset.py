"""Fetching a dataset: one file, a folder of files, or files that are already split."""

from __future__ import annotations

from pathlib import Path

from anneal_jobs.storage.source import OnBytes, SourceAccess, fetch_files, list_source
from anneal_jobs.storage.uri import parse_uri
from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.errors import DATASET_NOT_FOUND, UserError
from anneal_pipeline.stages import DatasetFiles

_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def fetch_dataset(
    config: DatasetConfig, *, to: Path, access: SourceAccess, on_bytes: OnBytes
) -> DatasetFiles:
    """Put the dataset's files below `to`, keeping their names, which appear in messages."""

    def fetch(address: str | None, side: str) -> tuple[Path, ...]:
        if address is None:
            return ()
        return _fetch_side(
            address, revision=config.revision, to=to / side, access=access, on_bytes=on_bytes
        )

    if config.files is None:
        return DatasetFiles(train=fetch(config.uri, "all"))
    return DatasetFiles(
        train=fetch(config.files.train, "train"),
        validation=fetch(config.files.validation, "validation"),
        test=fetch(config.files.test, "test"),
    )


def _fetch_side(
    address: str, *, revision: str | None, to: Path, access: SourceAccess, on_bytes: OnBytes
) -> tuple[Path, ...]:
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
    to.mkdir(parents=True, exist_ok=True)
    return tuple(fetch_files(files, to=to, on_bytes=on_bytes))
