"""What of the files of an attempt is kept beside its outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anneal_jobs import logs
from anneal_jobs.event_log import EventLog
from anneal_jobs.logs import shown, tail_of


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
    kept = [json.loads(line)["step"] for line in shown(path).splitlines()]
    assert kept == list(range(50))
