"""What a run reads and where it writes: looked at before anything costs time, then fetched.

Light on purpose: the driver looks before it starts Ray, without torch, transformers or MLflow. Both
go through the same functions, so that a mistake has one message wherever it is met.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anneal_jobs.attempt import Attempt
from anneal_jobs.storage.access import s3_settings_of
from anneal_jobs.storage.dataset import fetch_dataset, find_dataset
from anneal_jobs.storage.meter import OnBytes
from anneal_jobs.storage.model import FetchedModel, fetch_model, find_model
from anneal_jobs.storage.places import open_folder
from anneal_jobs.storage.s3 import S3Settings
from anneal_jobs.storage.source import SourceAccess
from anneal_jobs.storage.uri import StorageUri, parse_uri
from anneal_pipeline.checkpoint.store import BlobFolder
from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.config.model import ModelConfig
from anneal_pipeline.data.files import DatasetFiles

CONFIG_NAME = "config.json"
_PREPARED_MARK = "data/report.json"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    model: FetchedModel
    dataset: DatasetFiles | None
    """None: the workspace holds the rows as an earlier attempt has prepared them."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The output folder, and the workspace that mirrors it (or is it)."""

    uri: StorageUri
    folder: BlobFolder
    workspace: Path

    @property
    def is_local(self) -> bool:
        return self.uri.scheme == "file"


def open_place(attempt: Attempt) -> Place:
    """Open the output folder and prove that it can be written, before anything costs time."""
    place = find_place(attempt)
    config = attempt.config.pipeline.model_dump_json(by_alias=True, exclude_none=True, indent=2)
    place.folder.write(CONFIG_NAME, config.encode() + b"\n")
    return place


def find_place(attempt: Attempt) -> Place:
    """The output folder as it is, without a request."""
    uri = parse_uri(attempt.config.output_uri)
    folder = open_folder(uri, s3_settings_of(attempt.config))
    if uri.scheme == "file":
        return Place(uri=uri, folder=folder, workspace=Path(uri.path).expanduser())
    attempt.folders.workspace.mkdir(parents=True, exist_ok=True)
    return Place(uri=uri, folder=folder, workspace=attempt.folders.workspace)


def fetch_inputs(attempt: Attempt, *, workspace: Path, on_bytes: OnBytes) -> Inputs:
    """Fetch what the run reads: the dataset first, because a mistake in it is the likeliest."""
    pipeline, folder = attempt.config.pipeline, attempt.folders.inputs
    access = _source_access(attempt)
    dataset = None
    if not (attempt.trusts_prepared_data and (workspace / _PREPARED_MARK).is_file()):
        dataset = fetch_dataset(
            pipeline.dataset, to=folder / "dataset", access=access, on_bytes=on_bytes
        )
    model = fetch_model(pipeline.model, to=_model_folder(attempt), access=access, on_bytes=on_bytes)
    return Inputs(model=model, dataset=dataset)


def check_inputs(attempt: Attempt) -> None:
    """Meet a mistake in the job now: addresses, credentials, missing, empty or wrong files.

    Costs a few small requests. What only the contents tell is met when they are read.
    """
    place = open_place(attempt)
    pipeline, access = attempt.config.pipeline, _source_access(attempt)
    if not (attempt.trusts_prepared_data and place.folder.read(_PREPARED_MARK) is not None):
        find_dataset(pipeline.dataset, access=access)
    find_model(pipeline.model, to=_model_folder(attempt), access=access)


def check_local_inputs(model: ModelConfig, dataset: DatasetConfig) -> None:
    """The same for what lies on this disk alone, without a folder or a request."""
    access = SourceAccess(s3=S3Settings())
    if all(parse_uri(address).scheme == "file" for _, address in dataset.sources()):
        find_dataset(dataset, access=access)
    uri = parse_uri(model.uri)
    if uri.scheme == "file":
        find_model(model, to=Path(), access=access)


def _model_folder(attempt: Attempt) -> Path:
    return attempt.folders.inputs / "model"


def _source_access(attempt: Attempt) -> SourceAccess:
    return SourceAccess(s3=s3_settings_of(attempt.config), hub_endpoint=attempt.config.hub.endpoint)
