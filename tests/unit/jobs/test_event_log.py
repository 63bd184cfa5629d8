"""Lines for programs: each whole, in order, with what tells attempts apart."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anneal_jobs.event_log import EventLog
from anneal_jobs.observer import RunObserver, throughput_line
from anneal_jobs.run_state import RunState
from anneal_pipeline.observer import EVENT_RECOVERED, CheckpointReport, EvaluationReport, StepReport

STEP = StepReport(
    step=3,
    total_steps=10,
    epoch=0.3,
    loss=1.25,
    learning_rate=2e-4,
    grad_norm=0.5,
    num_tokens=2000,
    num_trained_tokens=500,
    step_seconds=2.0,
    data_seconds=0.2,
    gradient_seconds=1.6,
    update_seconds=0.2,
    tokens_per_second=1000.0,
    eta_seconds=14.0,
    memory_bytes=512_000_000,
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def observer_with(events: EventLog, folder: Path) -> RunObserver:
    return RunObserver(
        state=RunState(),
        stop_file=folder / "stop",
        writer=None,
        reporter=None,
        uploader=None,
        display=None,
        workspace=folder,
        events=events,
    )


def test_what_happens_is_a_line_with_run_attempt_step_event_and_fields(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "events.jsonl"
    observer = observer_with(EventLog(path, run="3f9c", attempt=2), tmp_path)
    observer.on_step(STEP)
    observer.on_event(EVENT_RECOVERED, "half the rows from now on", {"kind": "oom", "step": 3})
    observer.on_evaluation(
        EvaluationReport(
            step=3,
            subject="tuned",
            split="test",
            metrics={"loss": math.nan},
            num_rows=5,
            num_tokens=50,
            seconds=1.0,
        )
    )
    observer.on_checkpoint(
        CheckpointReport(
            name="step-000003", step=3, num_bytes=7, seconds=0.1, is_best=True, cause="best"
        )
    )
    found = lines(path)
    assert [line["event"] for line in found] == ["step", "recovered", "evaluation", "checkpoint"]
    assert {(line["run"], line["attempt"], line["step"]) for line in found} == {("3f9c", 2, 3)}
    assert all(line["time"].endswith("+00:00") for line in found)
    assert found[0]["fields"]["num_trained_tokens"] == 500
    assert found[1]["fields"] == {
        "kind": "oom",
        "step": 3,
        "message": "half the rows from now on",
    }
    assert found[2]["fields"]["metrics"] == {"loss": None}
    assert found[3]["fields"]["cause"] == "best"


def test_secrets_are_masked_and_every_line_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    path = tmp_path / "events.jsonl"
    events = EventLog(path, run="3f9c", attempt=1)
    events.write("warning", step=None, fields={"message": "two\nlines, correct-horse", "at": path})
    [line] = lines(path)
    assert line["fields"] == {"message": "two\nlines, ***", "at": str(path)}


def test_an_attempt_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for attempt in (1, 2):
        events = EventLog(path, run="3f9c", attempt=attempt)
        events.write("resumed", step=attempt, fields={})
    assert [line["attempt"] for line in lines(path)] == [2]


def test_the_throughput_line_has_speed_time_memory_and_what_is_left() -> None:
    assert throughput_line(STEP) == (
        "step 3/10 loss=1.2500 lr=0.0002 grad_norm=0.5 tokens_per_second=1000 "
        "trained_tokens_per_second=250 step_seconds=2 data_seconds=0.2 gradient_seconds=1.6 "
        "update_seconds=0.2 memory_megabytes=512 eta_seconds=14"
    )


def test_where_ranks_fall_the_line_has_their_average() -> None:
    line = throughput_line(replace(STEP, mean_rank=5.25))
    assert line == f"{throughput_line(STEP)} mean_rank=5.25"
