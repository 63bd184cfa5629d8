"""A read-only source of files (S3, hub, volume or local folder) behind one small interface."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anneal_jobs.errors import URI_INVALID
from anneal_jobs.storage import hub
from anneal_jobs.storage.hub_configurations import require_one
from anneal_jobs.storage.meter import ByteMeter, OnBytes, OnChunk
from anneal_jobs.storage.places import path_of
from anneal_jobs.storage.s3 import S3Folder, S3Settings, connect
from anneal_jobs.storage.uri import StorageUri
from anneal_pipeline.checkpoint.manifest import sha256_of
from anneal_pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SourceAccess:
    """How sources outside this file system are reached."""

    s3: S3Settings
    hub_endpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    name: str
    """Relative to the address; the file's own name when the address is a single file."""
    size: int
    fetch: Callable[[Path, OnChunk], Path]
    """Put the file below a folder, telling of every chunk, and return its path; a file already on
    this disk stays there. What the listener raises ends the transfer, and leaves no file."""


def list_source(
    uri: StorageUri,
    *,
    kind: Literal["model", "dataset"],
    revision: str | None,
    not_found_reason: str,
    access: SourceAccess,
) -> list[SourceFile]:
    """The files at `uri`, sorted by name; empty when there is nothing there."""
    if uri.scheme == "hf":
        if revision is None:
            raise UserError(URI_INVALID, f"{uri} needs a revision: name the commit to read.")
        if kind == "model" and uri.path:
            raise UserError(
                URI_INVALID,
                f"{uri} names a folder of a repository, expected hf://{uri.container}: a base "
                "model is found again by its repository; copy the folder to s3:// or pvc://, or "
                "name a repository of its own.",
            )
        repository = hub.HubRepository(
            name=uri.container, kind=kind, revision=revision, not_found_reason=not_found_reason
        )
        return _of_hub(repository, path=uri.path, endpoint=access.hub_endpoint)
    path = path_of(uri)
    return _of_s3(uri, access.s3) if path is None else _of_path(path)


def fetch_files(files: list[SourceFile], *, to: Path, on_bytes: OnBytes) -> list[Path]:
    """Fetch in order, reporting bytes as they come; the paths keep the order of `files`."""
    meter = ByteMeter(sum(file.size for file in files), on_bytes)
    meter.start()
    paths = []
    for file in files:
        paths.append(file.fetch(to, meter.add))
        meter.settle(file.size)
    return paths


def digest_of(files: list[SourceFile], paths: list[Path], *, on_bytes: OnBytes) -> str:
    """SHA-256 over names and contents: pins what an address held when it was read."""
    digest = hashlib.sha256()
    meter = ByteMeter(sum(file.size for file in files), on_bytes)
    for file, path in zip(files, paths, strict=True):
        digest.update(f"{file.name}\0{sha256_of(path, on_chunk=meter.add)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _of_path(root: Path) -> list[SourceFile]:
    if root.is_file():
        return [
            SourceFile(name=root.name, size=root.stat().st_size, fetch=lambda to, on_chunk: root)
        ]
    return [
        SourceFile(
            name=path.relative_to(root).as_posix(),
            size=path.stat().st_size,
            fetch=lambda to, on_chunk, path=path: path,  # type: ignore[misc]
        )
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]


def _of_s3(uri: StorageUri, settings: S3Settings) -> list[SourceFile]:
    folder = S3Folder(connect(settings), uri, credentials=settings.credentials)

    def fetcher(name: str) -> Callable[[Path, OnChunk], Path]:
        def fetch(to: Path, on_chunk: OnChunk) -> Path:
            target = to / (name or uri.path.rsplit("/", 1)[-1])
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.download(name, target, on_chunk=on_chunk)
            return target

        return fetch

    return [
        SourceFile(
            name=entry.name or uri.path.rsplit("/", 1)[-1],
            size=entry.size,
            fetch=fetcher(entry.name),
        )
        for entry in folder.list_objects()
    ]


def _of_hub(repository: hub.HubRepository, *, path: str, endpoint: str | None) -> list[SourceFile]:
    contents = hub.look_into(repository, endpoint=endpoint)
    if not path:
        require_one(str(repository), contents.configurations)

    def fetcher(name: str) -> Callable[[Path, OnChunk], Path]:
        return lambda to, on_chunk: hub.download_file(
            repository, name, to=to, endpoint=endpoint, on_chunk=on_chunk
        )

    return [
        SourceFile(name=own, size=size, fetch=fetcher(name))
        for name, size in sorted(contents.files)
        if (own := _below(name, path=path)) is not None
    ]


def _below(name: str, *, path: str) -> str | None:
    """A file's name relative to `path`, its own name where it is `path`; None outside of it."""
    if not path:
        return name
    if name == path:
        return name.rsplit("/", 1)[-1]
    return name.removeprefix(f"{path}/") if name.startswith(f"{path}/") else None
