"""What of the files of an attempt is kept beside its outputs."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from anneal_jobs import logs
from anneal_jobs.event_log import EventLog
from anneal_jobs.logs import in_order, shown, store_log, tail_of
from anneal_pipeline.checkpoint.local import LocalFolder


@pytest.fixture(autouse=True)
def short_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "TAIL_BYTES", 100)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("a" * 40 + "\n", "a" * 40 + "\n", id="a short log is whole"),
        pytest.param("a\n" + "b" * 99 + "\n", "b" * 99 + "\n", id="a line that just fits is kept"),
        pytest.param("a\n" + "b" * 100 + "\n" + "c\n", "c\n", id="a line that is cut is left out"),
        pytest.param("a" * 150, "a" * 101, id="of one endless line there is the end"),
    ],
)
def test_the_end_of_a_log_is_whole_lines(tmp_path: Path, text: str, want: str) -> None:
    path = tmp_path / "driver.log"
    path.write_text(text)
    assert tail_of(path).decode() == want
    assert shown(path).decode() == want


def test_events_are_kept_from_the_first_one_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = EventLog(path, run="3f9c", attempt=1)
    for step in range(50):
        events.write("step", step=step, fields={})
    store_log(path, LocalFolder(tmp_path / "kept"), name="logs/events.jsonl")
    kept = (tmp_path / "kept" / "logs" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == list(range(50))


def test_events_of_a_long_run_are_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * (16 << 20))
    tracemalloc.start()
    try:
        store_log(path, LocalFolder(tmp_path / "kept"), name="events.jsonl")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "kept" / "events.jsonl").stat().st_size == 16 << 20
    assert peak < 4 << 20


def test_of_a_log_for_people_the_masked_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "driver.log"
    path.write_text("a" * 150 + "\ntoken hf_ABCDEFGHIJKLMNOPQRSTUVWX\n")
    store_log(path, LocalFolder(tmp_path / "kept"), name="driver.log")
    assert (tmp_path / "kept" / "driver.log").read_text() == "token ***\n"


def test_what_may_be_large_comes_last() -> None:
    names = [path.name for path in in_order(map(Path, ("rank-0.log", "events.jsonl", "a.log")))]
    assert names == ["a.log", "rank-0.log", "events.jsonl"]
