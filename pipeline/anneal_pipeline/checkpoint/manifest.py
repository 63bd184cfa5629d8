"""The manifest that makes a folder a checkpoint.

A checkpoint exists when its `manifest.json` does: it is written last and deleted first, and lists
every other file with size and SHA-256. The same form lists the files of an artefact.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anneal_pipeline.errors import CheckpointError

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
FOLDER_NAME = re.compile(
    r"^step-(?P<step>\d{6,})-a(?P<attempt>\d{2,})-(?P<writer>[0-9a-z]{1,8})(-r\d+)?$"
)
_READ_BYTES = 1 << 20


def ignore_chunk(count: int) -> None:
    """Nobody counts the bytes."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    path: str
    """Relative to the folder, with forward slashes."""
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What the trainer knows about a checkpoint beyond its files."""

    step: int
    config_hash: str
    dataset_digest: str
    libraries: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    recoveries: int = 0
    """As in `folder_name`."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    name: str
    step: int
    attempt: int
    writer: str
    config_hash: str
    dataset_digest: str
    libraries: Mapping[str, str]
    metrics: Mapping[str, float]
    files: tuple[FileEntry, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def num_bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=2, sort_keys=True).encode() + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest back; anything that is not one is a `CheckpointError`."""
    try:
        fields: dict[str, Any] = json.loads(data)
        files = tuple(FileEntry(**entry) for entry in fields.pop("files"))
        manifest = Manifest(files=files, **fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"manifest is not readable: {error}") from error
    if manifest.schema_version > SCHEMA_VERSION:
        raise CheckpointError(
            f"manifest has schema {manifest.schema_version}, this trainer reads up to "
            f"{SCHEMA_VERSION}"
        )
    if any(not _is_inside(entry.path) for entry in manifest.files):
        raise CheckpointError("manifest names a file outside its folder")
    return manifest


def _is_inside(path: str) -> bool:
    return not path.startswith("/") and ".." not in path.split("/") and path != ""


def list_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below `folder` but the manifest itself, sorted by path."""
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return tuple(
        FileEntry(path=path, size=(folder / path).stat().st_size, sha256=sha256_of(folder / path))
        for path in paths
        if path != MANIFEST_NAME
    )


def find_damage(
    folder: Path, manifest: Manifest, *, on_chunk: Callable[[int], None] = ignore_chunk
) -> str | None:
    """Say what differs between a local folder and its manifest; None when nothing does."""
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            return f"{entry.path} is missing"
        if path.stat().st_size != entry.size:
            return f"{entry.path} has {path.stat().st_size} bytes instead of {entry.size}"
        if sha256_of(path, on_chunk=on_chunk) != entry.sha256:
            return f"{entry.path} does not have its SHA-256"
    return None


def sha256_of(path: Path, *, on_chunk: Callable[[int], None] = ignore_chunk) -> str:
    """In hex; `on_chunk` hears of the bytes of each chunk, and what it raises ends the reading."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
            on_chunk(len(chunk))
    return digest.hexdigest()


def folder_name(step: int, *, attempt: int, writer: str, recoveries: int = 0) -> str:
    """The name under which `attempt`, running in the pod `writer`, saves `step`.

    An attempt that went back comes to a step again: `recoveries`, how often its learning rate was
    lowered by then, keeps the names apart.
    """
    name = f"step-{step:06d}-a{attempt:02d}-{writer[:8].lower()}"
    if recoveries:
        name += f"-r{recoveries}"
    if not FOLDER_NAME.match(name):
        raise CheckpointError(
            f"{name} is no checkpoint name: the writer must be letters and digits"
        )
    return name


def order_of(name: str) -> tuple[int, int] | None:
    """(step, attempt) of a checkpoint folder's name, None for any other name."""
    match = FOLDER_NAME.match(name)
    return (int(match["step"]), int(match["attempt"])) if match else None
