"""What the trainer's events become outside it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from anneal_jobs.event_log import EventLog
from anneal_jobs.observer import RunObserver, tag_of_event
from anneal_jobs.progress import ProgressReporter
from anneal_jobs.run_state import RunState
from anneal_jobs.tracking.writer import RunWriter
from anneal_pipeline import observer as pipeline


def observer_of(
    folder: Path,
    state: RunState,
    *,
    writer: RunWriter | None = None,
    reporter: ProgressReporter | None = None,
) -> RunObserver:
    return RunObserver(
        state=state,
        stop_file=folder / "stop",
        writer=writer,
        reporter=reporter,
        uploader=None,
        display=None,
        workspace=folder,
        events=EventLog(folder / "events.jsonl", run="3f9c", attempt=1),
    )


@pytest.mark.parametrize(
    ("name", "fields", "want"),
    [
        (
            pipeline.EVENT_RECOVERED,
            {"kind": "oom", "step": 34, "microBatchSize": 2},
            "anneal.recovered.oom.step-000034",
        ),
        (pipeline.EVENT_RECOVERED, {"kind": "oom"}, "anneal.recovered.oom"),
        (pipeline.EVENT_DIAGNOSIS, {"row": "S7", "symptom": "flat"}, "anneal.diagnosis.S7"),
        (
            pipeline.EVENT_DIAGNOSIS,
            {"row": "S26", "case": "result", "symptom": "worse"},
            "anneal.diagnosis.S26.result",
        ),
        (pipeline.EVENT_EARLY_STOP, {"step": 8}, "anneal.early-stop.step-000008"),
        (
            pipeline.EVENT_CHECKPOINT_REJECTED,
            {"checkpoint": "step-000120-a02-1f2e3d4c"},
            "anneal.checkpoint-rejected.step-000120-a02-1f2e3d4c",
        ),
    ],
)
def test_an_event_has_a_tag_of_its_own_on_the_run(
    name: str, fields: dict[str, Any], want: str
) -> None:
    assert tag_of_event(name, fields) == want


@pytest.mark.parametrize(
    ("name", "level"),
    [
        (pipeline.EVENT_RECOVERED, logging.WARNING),
        (pipeline.EVENT_DIAGNOSIS, logging.WARNING),
        (pipeline.EVENT_WARNING, logging.WARNING),
        (pipeline.EVENT_RESUMED, logging.INFO),
    ],
)
def test_events_are_in_the_log_and_in_the_progress(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, level: int
) -> None:
    state = RunState()
    observer = observer_of(tmp_path, state)
    with caplog.at_level(logging.INFO, logger="anneal_jobs.observer"):
        observer.on_event(name, "half the rows from now on", {"kind": "oom"})
    [record] = caplog.records
    assert (record.levelno, record.message) == (level, "half the rows from now on")
    [event] = state.snapshot(attempt=1)[1].events
    assert (event.name, event.message) == (name, "half the rows from now on")


def test_an_attempt_that_learns_of_a_newer_one_stops_at_its_next_step(tmp_path: Path) -> None:
    state = RunState()
    reporter = ProgressReporter(state, post=lambda _, *, timeout_seconds: 409, attempt=1)
    observer = observer_of(tmp_path, state, reporter=reporter)
    state.add_event("warning", "Few rows.")
    assert not observer.should_stop()
    reporter.send_if_changed()
    assert observer.should_stop()


def test_going_back_is_kept_for_the_points_of_the_steps_taken_again(tmp_path: Path) -> None:
    observer = observer_of(
        tmp_path, RunState(), writer=RunWriter(MlflowClient("http://127.0.0.1:9"), "run")
    )
    fields = {"kind": "nan", "step": 6, "backTo": 2, "rate": 0.5}
    observer.on_event(pipeline.EVENT_RECOVERED, "back to step 2", fields)
    [turn] = observer.save_state()["turns"]
    assert (turn["step"], turn["back_to"]) == (6, 2)


def test_what_quantisation_saved_and_what_is_trained_are_on_the_run(tmp_path: Path) -> None:
    observer = observer_of(
        tmp_path, RunState(), writer=RunWriter(MlflowClient("http://127.0.0.1:9"), "run")
    )
    fields = {"trainable": 5, "parameters": 1000, "baseBytes": 2_000_000, "compression": 3.9}
    observer.on_event(pipeline.EVENT_MODEL_READY, "Training 5 of 1,000 parameters", fields)
    points = {key: value for key, value, *_ in observer.save_state()["pendingMetrics"]}
    assert points == {
        "model/trainable_share": 0.005,
        "model/compression_ratio": 3.9,
        "model/base_megabytes": 2.0,
    }


def test_what_the_base_lost_in_4_bits_is_a_metric_each(tmp_path: Path) -> None:
    observer = observer_of(
        tmp_path, RunState(), writer=RunWriter(MlflowClient("http://127.0.0.1:9"), "run")
    )
    fields = {"step": 7, "metrics": {"rounding_error": 0.09}}
    observer.on_event(pipeline.EVENT_ROUNDING_MEASURED, "The base in nf4 is off by 9 %", fields)
    [point] = observer.save_state()["pendingMetrics"]
    assert point[:3] == ["quantization/rounding_error", 0.09, 7]


def test_how_the_adapters_were_used_is_a_metric_each(tmp_path: Path) -> None:
    observer = observer_of(
        tmp_path, RunState(), writer=RunWriter(MlflowClient("http://127.0.0.1:9"), "run")
    )
    fields = {"step": 7, "metrics": {"effective_rank_share": 0.75, "idle_modules": 2}}
    observer.on_event(pipeline.EVENT_ADAPTERS_MEASURED, "The adapters use 75%", fields)
    points = observer.save_state()["pendingMetrics"]
    assert [point[:3] for point in points] == [
        ["adapters/effective_rank_share", 0.75, 7],
        ["adapters/idle_modules", 2.0, 7],
    ]
