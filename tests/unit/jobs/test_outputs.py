"""What is finished goes to the output folder beside the run, comes back, and can be stopped."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from anneal_jobs.run_state import RunState
from anneal_jobs.storage.meter import OnBytes, OnChunk
from anneal_jobs.storage.model import fetch_model, find_model
from anneal_jobs.storage.outputs import OutputUploader, restore_workspace
from anneal_jobs.storage.s3 import S3Settings
from anneal_jobs.storage.source import SourceAccess
from anneal_operator.api.progress import StageProgress
from anneal_pipeline.checkpoint.local import LocalFolder
from anneal_pipeline.checkpoint.manifest import ignore_chunk
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


class Storing(LocalFolder):
    """Says when a file is stored, and stores none named `last` before it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.is_stored, self.may_store_last = threading.Event(), threading.Event()

    def upload(self, source: Path, name: str, *, on_chunk: OnChunk = ignore_chunk) -> None:
        assert name != "last" or self.may_store_last.wait(60)
        super().upload(source, name, on_chunk=on_chunk)
        self.is_stored.set()


def test_a_stage_is_left_alone_by_uploads_until_the_run_waits_for_them(tmp_path: Path) -> None:
    """A milestone is stored while training goes on; what is left at the end is a stage."""
    state, folder = RunState(), Storing(tmp_path / "stored")
    stages: list[str] = []

    def stage() -> StageProgress:
        found = state.snapshot(attempt=1)[1].stage
        assert found is not None
        return found

    def report(done: int, total: int) -> None:
        state.set_stage("upload", done=done, total=total, unit="bytes")
        stages.append(f"{done}/{total}")
        folder.may_store_last.set()

    for name, size in (("milestone", 3 * MEBIBYTE), ("last", MEBIBYTE)):
        (tmp_path / name).write_bytes(b"x" * size)
    uploader = OutputUploader(folder, workspace=tmp_path, on_bytes=report)
    uploader.start()
    state.set_stage("train", done=5, total=10, unit="steps")
    uploader.add(tmp_path / "milestone")
    assert folder.is_stored.wait(60)
    uploader.add(tmp_path / "last")
    assert (stage().name, stages) == ("train", [])
    uploader.finish()
    assert (stage().name, stage().done, stage().total) == ("upload", MEBIBYTE, MEBIBYTE)
    assert len(stages) > 1


def test_the_last_uploads_are_seen_also_where_all_is_stored(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    folder = Storing(tmp_path / "stored")
    (tmp_path / "adapter").write_bytes(b"x" * 10)
    uploader = OutputUploader(folder, workspace=tmp_path, on_bytes=lambda *b: told.append(b))
    uploader.start()
    uploader.add(tmp_path / "adapter")
    assert folder.is_stored.wait(60)
    assert told == []
    uploader.finish()
    assert told[-1] == (10, 10)


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


def test_further_chat_templates_of_a_model_are_fetched_with_it(tmp_path: Path) -> None:
    """And nothing else of its folders."""
    model = tmp_path / "model"
    templates = model / "additional_chat_templates"
    for folder in (model, templates, templates / "old", model / "other"):
        folder.mkdir()
        (folder / "tool_use.jinja").write_text("{{ tools }}")
        (folder / "tokenizer.json").write_text("{}")
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"w")
    files = find_model(
        ModelConfig(uri=str(model)), to=tmp_path / "to", access=SourceAccess(s3=S3Settings())
    )
    assert [file.name for file in files] == [
        "additional_chat_templates/tool_use.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
