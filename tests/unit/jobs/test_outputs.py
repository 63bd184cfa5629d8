"""What earlier attempts have finished comes back from the output folder, and can be stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from anneal_jobs.storage.meter import OnBytes
from anneal_jobs.storage.model import fetch_model
from anneal_jobs.storage.outputs import restore_workspace
from anneal_jobs.storage.s3 import S3Settings
from anneal_jobs.storage.source import SourceAccess
from anneal_pipeline.checkpoint.local import LocalFolder
from anneal_pipeline.config.model import ModelConfig
from anneal_pipeline.errors import StopRequestedError

MEBIBYTE = 1 << 20


def stop_after(num_bytes: int) -> OnBytes:
    def report(done: int, total: int) -> None:
        if done >= num_bytes:
            raise StopRequestedError

    return report


@pytest.fixture
def stored(tmp_path: Path) -> LocalFolder:
    folder = tmp_path / "stored"
    files = {
        "config.json": 10,
        "data/report.json": 10,
        "data/train/rows.jsonl": 3 * MEBIBYTE,
        "checkpoints/step-000001-a01-1f2e3d4c/manifest.json": 10,
        "logs/attempt-01/driver.log": 10,
        "milestones/checkpoint-25pct/adapter_model.safetensors": MEBIBYTE,
    }
    for name, size in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    return LocalFolder(folder)


def test_bytes_are_told_while_a_file_comes_back(stored: LocalFolder, tmp_path: Path) -> None:
    came: list[tuple[int, int]] = []
    count = restore_workspace(stored, tmp_path / "own", on_bytes=lambda *b: came.append(b))
    assert count == 3
    assert came[-1] == (3 * MEBIBYTE + 20, 0)
    restored = {path.name for path in (tmp_path / "own").iterdir()}
    assert restored == {"config.json", "data"}, "nobody reads checkpoints, logs or milestones there"
    assert len([done for done, _ in came if 0 < done < 3 * MEBIBYTE]) >= 2


def test_a_stop_ends_it_before_a_folder_looks_whole(stored: LocalFolder, tmp_path: Path) -> None:
    with pytest.raises(StopRequestedError):
        restore_workspace(stored, tmp_path / "own", on_bytes=stop_after(2 * MEBIBYTE))
    assert (tmp_path / "own" / "config.json").exists()
    assert not (tmp_path / "own" / "data" / "report.json").exists()


def test_the_digest_of_a_model_is_work_that_is_told_and_can_be_stopped(tmp_path: Path) -> None:
    """Its files lie here already, so that reading them is all there is."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    (model / "model.safetensors").write_bytes(b"w" * (3 * MEBIBYTE))
    told: list[int] = []

    def stop_in_the_digest(done: int, total: int) -> None:
        told.append(done)
        if told.count(total) and MEBIBYTE < done < total:
            raise StopRequestedError

    with pytest.raises(StopRequestedError):
        fetch_model(
            ModelConfig(uri=str(model)),
            to=tmp_path / "to",
            access=SourceAccess(s3=S3Settings()),
            on_bytes=stop_in_the_digest,
        )
    assert told[-1] > MEBIBYTE
