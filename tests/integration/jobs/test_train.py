"""`anneal-train` as the pod runs it: a process of its own, real Ray, S3 and MLflow."""

import json
import signal
from pathlib import Path

import pytest

from anneal_jobs.storage.s3 import S3Folder, connect
from anneal_jobs.storage.uri import parse_uri
from anneal_operator.api import names
from anneal_operator.api.outcome import Outcome

from .conftest import BUCKET
from .tiny import write_rows
from .trial import Trial

NUM_STEPS = 1500
"""Enough that a fast machine is still training when the first report, after 5 s, tells of it."""


def test_an_interrupted_attempt_is_finished_by_the_next(trial: Trial, tmp_path: Path) -> None:
    address = trial.upload(write_rows(tmp_path / "rows.jsonl"))
    trial.write_config(dataset=address, max_steps=NUM_STEPS)

    process = trial.start(attempt=1)
    trial.wait_for_step(2, process)
    process.send_signal(signal.SIGTERM)
    code, outcome = trial.finish(process)
    assert (code, outcome.outcome_class) == (75, "Interrupted"), trial.console(1)
    assert outcome.step is not None
    assert 2 <= outcome.step < NUM_STEPS
    assert outcome.checkpoint == f"step-{outcome.step:06d}-a01-1f2e3d4c"
    assert trial.files.read(f"checkpoints/{outcome.checkpoint}/manifest.json") is not None
    assert trial.progress.reports[-1]["anneal"]["outcome"]["class"] == "Interrupted"
    assert "Traceback" not in trial.console(1)

    code, done = trial.finish(trial.start(attempt=2))
    assert (code, done.outcome_class) == (0, "Done"), trial.console(2)
    assert done.step == NUM_STEPS
    assert done.model_version == f"{trial.name}/1"
    history = trial.client.get_metric_history(trial.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, NUM_STEPS + 1))
    check_progress(trial, done)
    check_files(trial, done)
    check_registered_version(trial, done)


def check_progress(trial: Trial, done: Outcome) -> None:
    last = trial.progress.reports[-1]
    assert last["trainerStatus"]["progressPercentage"] == 100
    assert last["anneal"]["attempt"] == 2
    assert last["anneal"]["outcome"]["artefactDigest"] == done.artefact_digest
    assert trial.progress.tokens == {"Bearer a-token"}


def check_files(trial: Trial, done: Outcome) -> None:
    names_stored = trial.files.list_names()
    for name in (
        "config.json",
        "data/report.json",
        "evaluation/report.html",
        "artifacts/manifest.json",
        "artifacts/adapter/adapter_model.safetensors",
        "logs/attempt-01/outcome.json",
        "logs/attempt-02/outcome.json",
        "logs/attempt-02/rank-0.log",
        "logs/attempt-02/driver.log",
    ):
        assert name in names_stored
    kept = trial.files.read("logs/attempt-02/outcome.json")
    assert kept is not None
    assert Outcome.model_validate_json(kept) == done


def check_registered_version(trial: Trial, done: Outcome) -> None:
    version = trial.client.get_model_version_by_alias(trial.name, "candidate")
    assert version.tags[names.TAG_JOB_UID] == f"uid-{trial.name}"
    assert version.tags[names.TAG_ARTEFACT_DIGEST] == done.artefact_digest
    assert version.tags[names.TAG_RUN_ID] == trial.run_id
    run = trial.client.get_run(trial.run_id)
    assert run.data.params["training.maxSteps"] == str(NUM_STEPS)
    assert "Load it" in run.data.tags["mlflow.note.content"]
    assert run.inputs.dataset_inputs[0].dataset.name == f"{trial.name}.jsonl"
    assert run.info.status == "RUNNING"


@pytest.mark.parametrize(
    ("rows", "reason", "part"),
    [
        pytest.param(None, "DatasetNotFound", "correct dataset.uri", id="missing object"),
        pytest.param(
            json.dumps({"messages": [{"role": "user", "content": "what"}]}) + "\n",
            "DatasetRowsInvalid",
            "rows",
            id="rows without an answer",
        ),
    ],
)
def test_a_mistake_of_the_user_ends_in_one_sentence(
    trial: Trial, rows: str | None, reason: str, part: str
) -> None:
    address = f"s3://{BUCKET}/data/{trial.name}.jsonl"
    if rows is not None:
        S3Folder(connect(trial.s3.settings), parse_uri(address)).write("", rows.encode())
    trial.write_config(dataset=address, max_steps=2)
    code, outcome = trial.finish(trial.start(attempt=1))
    assert (code, outcome.reason) == (65, reason), trial.console(1)
    assert part in outcome.message
    assert "\n" not in outcome.message
    assert not trial.client.search_model_versions(f"name = '{trial.name}'")
