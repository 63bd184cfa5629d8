"""The job's output folder: files that a run has finished go there while it goes on.

Copies run on a thread of their own, in order, what marks a folder as complete last. A local output
folder is the workspace itself and needs no copies.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from pathlib import Path

from anneal_jobs.errors import StorageUnreachableError
from anneal_jobs.storage.meter import ByteMeter, OnBytes, OnChunk
from anneal_pipeline.checkpoint.manifest import MANIFEST_NAME
from anneal_pipeline.checkpoint.store import BlobFolder

log = logging.getLogger(__name__)

CHECKPOINTS_NAME = "checkpoints"
LOGS_NAME = "logs"
MILESTONES_NAME = "milestones"
ARTEFACTS_NAME = "artifacts"
_MARKS = (MANIFEST_NAME, "report.json")
"""Files whose presence says that the rest of their folder is complete: stored last."""
_NOT_RESTORED = (CHECKPOINTS_NAME, LOGS_NAME, MILESTONES_NAME)
_TRIES = 4
_PAUSE_SECONDS = 5.0


class OutputUploader:
    """Copies finished parts of `workspace` into `folder`.

    `on_bytes` hears of them once `finish` waits for them: before that they are no stage of a run.
    """

    def __init__(
        self,
        folder: BlobFolder,
        *,
        workspace: Path,
        on_bytes: OnBytes,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self._folder = folder
        self._workspace = workspace
        self._on_bytes = on_bytes
        self._pause_seconds = pause_seconds
        self._queue: queue.Queue[Path | None] = queue.Queue()
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._progress = (0, 0)
        """Bytes done and in all, of what is copied."""
        self._is_awaited = False
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, path: Path) -> None:
        """Queue a file or a folder of the workspace."""
        self._queue.put(path)

    def finish(self) -> None:
        """Wait until everything queued is stored, or raise what kept it from being."""
        with self._lock:
            self._is_awaited = True
            self._on_bytes(*self._progress)  # where all is stored already, nothing else comes
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def give_up_after(self, seconds: float) -> None:
        """Store what is queued as far as the time goes; an attempt that stops must end.

        The next attempt makes and stores again what is missing, but no milestone from before the
        step that it goes on from.
        """
        self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive() or self._error is not None:
            log.warning(
                "not all files reached the output folder: %s",
                self._error or f"the uploads were not done within {seconds:.0f} s",
            )

    def _run(self) -> None:
        while (path := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._upload(path)
                except Exception as error:  # handed to finish(), which raises it
                    self._error = error

    def _upload(self, path: Path) -> None:
        files = files_below(path)
        sizes = [file.stat().st_size for file in files]
        meter = ByteMeter(sum(sizes), self._tell)
        for file, size in zip(files, sizes, strict=True):
            self._upload_file(file, on_chunk=meter.add)
            meter.settle(size)

    def _tell(self, done: int, total: int) -> None:
        with self._lock:
            self._progress = (done, total)
            if self._is_awaited:
                self._on_bytes(done, total)

    def _upload_file(self, file: Path, *, on_chunk: OnChunk) -> None:
        name = file.relative_to(self._workspace).as_posix()
        for is_last in [*[False] * (_TRIES - 1), True]:
            try:
                self._folder.upload(file, name, on_chunk=on_chunk)
            except StorageUnreachableError as error:
                if is_last:
                    raise
                log.warning("upload of %s failed, trying again: %s", name, error)
                time.sleep(self._pause_seconds)
            else:
                return


def files_below(path: Path) -> list[Path]:
    """The file itself, or all files of a folder with its completeness marks last."""
    if path.is_file():
        return [path]
    files = [file for file in path.rglob("*") if file.is_file()]
    return sorted(files, key=lambda file: (file.name in _MARKS, file.as_posix()))


def restore_workspace(folder: BlobFolder, workspace: Path, *, on_bytes: OnBytes) -> int:
    """Fetch what earlier attempts have finished, so that their stages are not run again.

    Returns the number of files. Checkpoints are the store's own business; logs and milestones are
    for people, and no attempt reads those of another. How much there is in all is not known
    before: `on_bytes` hears 0 of it. What it raises ends the copy; the marks come last here too, so
    that no folder looks whole that is not.
    """
    names = [name for name in folder.list_names() if name.split("/", 1)[0] not in _NOT_RESTORED]
    done = 0
    lock = threading.Lock()

    def count(chunk: int) -> None:
        nonlocal done
        with lock:  # S3 transfers call from threads of their own
            done += chunk
            so_far = done
        on_bytes(so_far, 0)

    for name in sorted(names, key=lambda name: (_is_mark(name), name)):
        target = workspace / name
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.download(name, target, on_chunk=count)
    return len(names)


def _is_mark(name: str) -> bool:
    return name.rsplit("/", 1)[-1] in _MARKS
