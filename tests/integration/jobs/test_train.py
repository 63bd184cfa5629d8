"""`anneal-train` as the pod runs it: a process of its own, real Ray, S3 and MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from anneal_jobs.storage.s3 import S3Folder, connect
from anneal_jobs.storage.uri import parse_uri
from anneal_operator.api import names
from anneal_operator.api.outcome import Outcome
from anneal_operator.api.run_config import JobIdentity, RunConfig, RunTracking, StorageAccess
from anneal_pipeline.config.pipeline import PipelineConfig

from .conftest import BUCKET, MlflowServer, S3Server
from .progress_server import ProgressRecorder
from .tiny import write_rows

DEADLINE_SECONDS = 900.0
NUM_STEPS = 1500
"""Enough that a fast machine is still training when the first report, after 5 s, tells of it."""


class Trial:
    """One job, and its attempts as processes."""

    def __init__(self, *, s3: S3Server, mlflow: MlflowServer, folder: Path, model: Path) -> None:
        self.folder = folder
        self.s3 = s3
        # pytest numbers the folders of alike tests at their end.
        self.name = f"{folder.name[:26]}{folder.name[-4:]}".lower().replace("_", "-")
        self.output = f"s3://{BUCKET}/outputs/{self.name}"
        self.client = MlflowClient(mlflow.uri)
        experiment = self.client.create_experiment(self.name)
        self.run_id = self.client.create_run(experiment).info.run_id
        self.mlflow_uri = mlflow.uri
        self.model = model
        self.progress = ProgressRecorder()
        self.files = S3Folder(connect(s3.settings), parse_uri(self.output))

    def write_config(self, *, dataset: str, max_steps: int) -> None:
        pipeline = {
            "model": {"uri": str(self.model)},
            "dataset": {"uri": dataset},
            "tuning": {"method": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}},
            "training": {
                "maxSteps": max_steps,
                "batchSize": 2,
                "learningRate": 5e-3,
                "sequenceLength": 32,
                "gradientCheckpointing": False,
            },
            "evaluation": {"numGenerations": 1, "everySteps": 1000},
            "checkpoint": {"everySteps": 5000},
        }
        config = RunConfig(
            job=JobIdentity(namespace="team-a", name=self.name, uid=f"uid-{self.name}"),
            pipeline=PipelineConfig.parse(pipeline),
            output_uri=self.output,
            storage=StorageAccess(endpoint=self.s3.endpoint),
            tracking=RunTracking(
                uri=self.mlflow_uri,
                experiment=self.name,
                registered_model=self.name,
                alias="candidate",
            ),
        )
        (self.folder / "job.json").write_text(config.model_dump_json(exclude_none=True))

    def start(self, *, attempt: int) -> "subprocess.Popen[bytes]":
        token = self.folder / "token"
        token.write_text("a-token\n")
        work = self.folder / f"work-{attempt}"
        work.mkdir()
        environment = {
            **os.environ,
            names.ENV_ATTEMPT: str(attempt),
            names.ENV_POD_UID: f"{attempt}f2e3d4c-0000-0000-0000-000000000000",
            names.ENV_RUN_ID: self.run_id,
            names.ENV_PROGRESS_URL: self.progress.url,
            names.ENV_PROGRESS_TOKEN: str(token),
        }
        command = [sys.executable, "-m", "anneal_jobs.train", str(self.folder / "job.json")]
        command += ["--work-folder", str(work), "--termination-log", str(self.folder / "log.json")]
        with (self.folder / f"console-{attempt}").open("wb") as console:
            return subprocess.Popen(command, env=environment, stdout=console, stderr=console)

    def finish(self, process: "subprocess.Popen[bytes]") -> tuple[int, Outcome]:
        code = process.wait(timeout=DEADLINE_SECONDS)
        return code, Outcome.model_validate_json((self.folder / "log.json").read_text())

    def console(self, attempt: int) -> str:
        return (self.folder / f"console-{attempt}").read_text()

    def wait_for_step(self, step: int, process: "subprocess.Popen[bytes]") -> None:
        until = time.monotonic() + DEADLINE_SECONDS
        while self.progress.step < step:
            assert process.poll() is None, self.console(1)
            assert time.monotonic() < until, self.console(1)
            time.sleep(0.2)


@pytest.fixture
def trial(
    s3: S3Server, mlflow_server: MlflowServer, tmp_path: Path, tiny_model: Path
) -> Iterator[Trial]:
    trial = Trial(s3=s3, mlflow=mlflow_server, folder=tmp_path, model=tiny_model)
    trial.progress.start()
    yield trial
    trial.progress.stop()


def test_an_interrupted_attempt_is_finished_by_the_next(trial: Trial, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    address = f"s3://{BUCKET}/data/{trial.name}.jsonl"
    S3Folder(connect(trial.s3.settings), parse_uri(address)).upload(rows, "")
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
