"""A real run that recovers: each action is in the event log, in MLflow and in the progress."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from tests.integration.pipeline.mishaps import config_of, poisoned_model
from tests.unit.pipeline import kit
from transformers.models.llama.modeling_llama import LlamaModel

from anneal_jobs.event_log import EventLog
from anneal_jobs.observer import RunObserver
from anneal_jobs.progress import ProgressReporter, ProgressServer
from anneal_jobs.run_state import RunState
from anneal_jobs.tracking.connection import connect
from anneal_jobs.tracking.writer import RunWriter

from .conftest import MlflowServer
from .progress_server import ProgressRecorder

LONG_SECONDS = 300.0
BAD_ROW = 6
"""Its line in the file, counted from 1."""


@pytest.fixture
def progress() -> Iterator[ProgressRecorder]:
    recorder = ProgressRecorder()
    recorder.start()
    yield recorder
    recorder.stop()


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real allocator refuses when more than two rows are trained at once."""
    forward = LlamaModel.forward

    def hungry(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        if self.training and len(input_ids) > 2:
            torch.empty(1 << 50)
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaModel, "forward", hungry)


@pytest.mark.usefixtures("little_memory")
def test_a_run_out_of_memory_and_with_a_nan_row_tells_both_recoveries_everywhere(
    mlflow_server: MlflowServer, progress: ProgressRecorder, tmp_path: Path
) -> None:
    model = kit.write_model(tmp_path / "whole")
    poisoned = poisoned_model(kit, model, tmp_path / "poisoned", text="~")
    data = kit.sums(12)
    data[BAD_ROW - 1] = kit.chat("Is ~ a wave?", "It is.")
    rows = kit.write_rows(tmp_path / "rows.jsonl", data)
    client = connect(mlflow_server.uri, credentials=Path("/nonexistent"))
    run_id = client.create_run(client.create_experiment("recoveries")).info.run_id
    token = tmp_path / "token"
    token.write_text("a-token")
    server = ProgressServer(url=progress.url, token_path=token, ca_path=None)

    state, writer = RunState(), RunWriter(client, run_id, linger_seconds=0.1)
    reporter = ProgressReporter(  # a run shorter than its interval: all is told at the end
        state, post=server.post, attempt=1, interval_seconds=3600.0
    )
    observer = RunObserver(
        state=state,
        stop_file=tmp_path / "stop",
        writer=writer,
        reporter=reporter,
        uploader=None,
        display=None,
        events=EventLog(tmp_path / "events.jsonl", run=run_id, attempt=1),
        workspace=tmp_path / "out",
    )
    writer.start()
    reporter.start()
    try:
        config = config_of(kit, training={"batchSize": 4, "maxSteps": 4})
        kit.run(tmp_path, config, model_dir=poisoned, rows=rows, observer=observer)  # type: ignore[arg-type]
        assert writer.flush(within_seconds=LONG_SECONDS)
    finally:
        reporter.close()
        writer.close()

    logged = recoveries_in(tmp_path / "events.jsonl")
    assert {fields["kind"] for fields in logged} == {"oom", "nan"}
    messages = [str(fields["message"]) for fields in logged]
    assert any(f"rows.jsonl:{BAD_ROW}" in message for message in messages)
    assert any("going on with 2 rows" in message for message in messages)
    assert sorted(tags_of(client, run_id)) == sorted(messages)
    assert sorted(reported_by(progress)) == sorted(messages)


def recoveries_in(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["fields"] for line in lines if line["event"] == "recovered"]


def tags_of(client: MlflowClient, run_id: str) -> list[str]:
    tags = client.get_run(run_id).data.tags
    return [value for key, value in tags.items() if key.startswith("anneal.recovered.")]


def reported_by(progress: ProgressRecorder) -> list[str]:
    events = [event for report in progress.reports for event in report["anneal"].get("events", [])]
    return [event["message"] for event in events if event["name"] == "recovered"]
