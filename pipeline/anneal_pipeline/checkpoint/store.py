"""Checkpoints in some place of files: save, newest good one, best, retention.

`BlobFolder` is what a place has to offer (a local folder here, an S3 prefix in `anneal_jobs`);
everything that decides is in `CheckpointStore`, once. Guarantees: a folder without a valid manifest
is never taken; a folder is never overwritten; what `best.json` names, what this attempt resumed
from and what it saved last is never pruned; a checkpoint being pruned loses its manifest first, so
that a crash leaves no half checkpoint that counts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from anneal_pipeline.checkpoint.manifest import (
    MANIFEST_NAME,
    CheckpointInfo,
    Manifest,
    find_damage,
    folder_name,
    ignore_chunk,
    list_entries,
    order_of,
    parse_manifest,
)
from anneal_pipeline.errors import CheckpointError

BEST_NAME = "best.json"


class BlobFolder(Protocol):
    """A place for files. Names are relative, with forward slashes; every call may raise OSError."""

    def list_names(self) -> list[str]:
        """The names of all files, at any depth."""

    def read(self, name: str) -> bytes | None:
        """A small file's content, None when there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Put a small file in one step: a reader sees the old content or the new, never a part."""

    def upload(
        self, source: Path, name: str, *, on_chunk: Callable[[int], None] = ignore_chunk
    ) -> None:
        """Copy a local file here, telling of bytes that went; durable when the call returns."""

    def download(
        self, name: str, target: Path, *, on_chunk: Callable[[int], None] = ignore_chunk
    ) -> None:
        """Copy a file to the local path `target`, whose folder exists, telling of bytes that came.

        What `on_chunk` raises ends the copy.
        """

    def delete(self, name: str) -> None:
        """Remove a file; none there is not an error."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The content of `best.json`."""

    name: str
    step: int
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A verified local copy."""

    folder: Path
    manifest: Manifest


class CheckpointStore:
    """The checkpoints of one job, written by one attempt.

    `scratch` is a local folder for verified copies; `on_rejected(name, why)` hears of every
    checkpoint that was passed over.
    """

    def __init__(
        self,
        folder: BlobFolder,
        *,
        scratch: Path,
        attempt: int,
        writer: str,
        keep: int,
        on_rejected: Callable[[str, str], None] | None = None,
    ) -> None:
        self._folder = folder
        self.scratch = scratch
        """Local, and this rank's own."""
        self._attempt = attempt
        self._writer = writer
        self._keep = keep
        self._on_rejected = on_rejected
        self._resumed: str | None = None
        self._saved: list[str] = []
        """Names of this attempt's own checkpoints, in the order they were saved."""
        self._rejected: set[str] = set()

    def save(self, source: Path, info: CheckpointInfo) -> Manifest:
        """Store the files of the local folder `source` as a new checkpoint, manifest last."""
        name = self.name_of(info.step, recoveries=info.recoveries)
        if self._folder.read(f"{name}/{MANIFEST_NAME}") is not None:
            raise CheckpointError(f"checkpoint {name} exists already and is never overwritten")
        manifest = Manifest(
            name=name,
            step=info.step,
            attempt=self._attempt,
            writer=self._writer[:8].lower(),
            config_hash=info.config_hash,
            dataset_digest=info.dataset_digest,
            libraries=dict(info.libraries),
            metrics=dict(info.metrics),
            files=list_entries(source),
        )
        for entry in manifest.files:
            self._folder.upload(source / entry.path, f"{name}/{entry.path}")
        self._folder.write(f"{name}/{MANIFEST_NAME}", manifest.to_bytes())
        self._saved.append(name)
        self.prune()
        return manifest

    def names(self) -> list[str]:
        """Names of the checkpoints that have a manifest, newest first."""
        suffix = f"/{MANIFEST_NAME}"
        found = [n.removesuffix(suffix) for n in self._folder.list_names() if n.endswith(suffix)]
        ordered = [(order, name) for name in found if (order := order_of(name)) is not None]
        return [name for _, name in sorted(ordered, reverse=True)]

    def latest(self, *, on_chunk: Callable[[int], None] = ignore_chunk) -> SavedCheckpoint | None:
        """The newest checkpoint whose every file is as its manifest says, to resume from."""
        for name in self.names():
            saved = self.fetch(name, on_chunk=on_chunk)
            if saved is not None:
                self._resumed = name
                return saved
        return None

    def fetch(
        self, name: str, *, on_chunk: Callable[[int], None] = ignore_chunk
    ) -> SavedCheckpoint | None:
        """A verified local copy of one checkpoint; if damaged, None and `on_rejected` hears why.

        `on_chunk` hears of the bytes copied and then of those compared; what it raises ends both.
        """
        target = self.scratch / name
        shutil.rmtree(target, ignore_errors=True)
        try:
            manifest = self._read_manifest(name)
            for entry in manifest.files:
                (target / entry.path).parent.mkdir(parents=True, exist_ok=True)
                self._folder.download(
                    f"{name}/{entry.path}", target / entry.path, on_chunk=on_chunk
                )
            damage = find_damage(target, manifest, on_chunk=on_chunk)
        except (CheckpointError, FileNotFoundError) as error:
            damage = str(error)
        if damage is not None:
            shutil.rmtree(target, ignore_errors=True)
            self._rejected.add(name)
            if self._on_rejected is not None:
                self._on_rejected(name, damage)
            return None
        return SavedCheckpoint(folder=target, manifest=manifest)

    def _read_manifest(self, name: str) -> Manifest:
        data = self._folder.read(f"{name}/{MANIFEST_NAME}")
        if data is None:
            raise CheckpointError("manifest is missing")
        manifest = parse_manifest(data)
        if manifest.name != name:
            raise CheckpointError(f"manifest belongs to {manifest.name}")
        return manifest

    def pin_best(self, best: Best) -> None:
        self._folder.write(BEST_NAME, json.dumps(asdict(best), indent=2).encode() + b"\n")

    def best(self) -> Best | None:
        data = self._folder.read(BEST_NAME)
        if data is None:
            return None
        try:
            return Best(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{BEST_NAME} is not readable: {error}") from error

    def name_of(self, step: int, *, recoveries: int = 0) -> str:
        """The name under which this attempt saves `step`."""
        return folder_name(step, attempt=self._attempt, writer=self._writer, recoveries=recoveries)

    def is_own(self, name: str) -> bool:
        """True for what this attempt saved and for what it resumed from."""
        return name in self._saved or name == self._resumed

    def discard_after(self, step: int, *, own_only: bool = False) -> None:
        """Delete the checkpoints of later steps: the run has gone back and takes another way."""
        later = {name for name in self.names() if (order_of(name) or (0, 0))[0] > step}
        doomed = {name for name in later if self.is_own(name) or not own_only}
        best = self.best()
        if best is not None and best.name in doomed:
            self._folder.delete(BEST_NAME)
        self._delete(doomed)
        self._saved = [name for name in self._saved if name not in doomed]

    def prune(self) -> None:
        """Delete all but the newest `keep` good checkpoints and those that must stay.

        A step says nothing about worth: one that was rejected, or left by a run that started anew,
        may carry a higher step than what this attempt has just saved. So rejected ones do not
        count, and this attempt's own come before those of others.
        """
        best = self.best()
        names = self.names()
        must_stay = {*self._saved[-1:], self._resumed, best.name if best else None}
        good = [name for name in names if name not in self._rejected]
        good.sort(key=lambda name: name not in self._saved)
        self._delete(set(names) - {*good[: self._keep], *must_stay})

    def _delete(self, doomed: set[str]) -> None:
        """Manifests first, so that a crash leaves no half checkpoint that counts."""
        for name in sorted(doomed):
            self._folder.delete(f"{name}/{MANIFEST_NAME}")
        for path in self._folder.list_names() if doomed else []:
            if path.split("/", 1)[0] in doomed:
                self._folder.delete(path)
