"""`BlobFolder` on the local disk: temporary name, fsync, rename."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from anneal_pipeline.checkpoint.manifest import ignore_chunk

_COPY_BYTES = 1 << 20
_PARTIAL_SUFFIX = ".partial"


class LocalFolder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def list_names(self) -> list[str]:
        return sorted(
            path.relative_to(self._root).as_posix()
            for path in self._root.rglob("*")
            if path.is_file() and path.suffix != _PARTIAL_SUFFIX
        )

    def read(self, name: str) -> bytes | None:
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        with self._begin(name).open("wb") as file:
            file.write(data)
            _flush(file)
        self._finish(name)

    def upload(
        self, source: Path, name: str, *, on_chunk: Callable[[int], None] = ignore_chunk
    ) -> None:
        with source.open("rb") as reader, self._begin(name).open("wb") as writer:
            _copy(reader, writer, on_chunk=on_chunk)
            _flush(writer)
        self._finish(name)

    def download(
        self, name: str, target: Path, *, on_chunk: Callable[[int], None] = ignore_chunk
    ) -> None:
        with (self._root / name).open("rb") as reader, target.open("wb") as writer:
            _copy(reader, writer, on_chunk=on_chunk)

    def delete(self, name: str) -> None:
        path = self._root / name
        path.unlink(missing_ok=True)
        folder = path.parent
        while folder != self._root and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent

    def _begin(self, name: str) -> Path:
        path = self._root / f"{name}{_PARTIAL_SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _finish(self, name: str) -> None:
        path = self._root / name
        os.replace(self._root / f"{name}{_PARTIAL_SUFFIX}", path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _copy(reader: BinaryIO, writer: BinaryIO, *, on_chunk: Callable[[int], None]) -> None:
    while chunk := reader.read(_COPY_BYTES):
        writer.write(chunk)
        on_chunk(len(chunk))


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
