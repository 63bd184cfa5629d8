"""A job whose attempts are processes, with real Ray, S3 and MLflow around them."""

import os
import subprocess
import sys
import time
from pathlib import Path

from mlflow import MlflowClient

from anneal_jobs.storage.s3 import S3Folder, connect
from anneal_jobs.storage.uri import parse_uri
from anneal_operator.api import names
from anneal_operator.api.outcome import Outcome
from anneal_operator.api.run_config import (
    JobIdentity,
    RunCompute,
    RunConfig,
    RunTracking,
    StorageAccess,
)
from anneal_pipeline.config.pipeline import PipelineConfig

from .conftest import BUCKET, MlflowServer, S3Server
from .progress_server import ProgressRecorder

DEADLINE_SECONDS = 900.0


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

    def upload(self, rows: Path) -> str:
        """Put a dataset into the store and return its address."""
        address = f"s3://{BUCKET}/data/{self.name}.jsonl"
        S3Folder(connect(self.s3.settings), parse_uri(address)).upload(rows, "")
        return address

    def write_config(self, *, dataset: str, max_steps: int, num_ranks: int = 1) -> None:
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
            "checkpoint": {"everySteps": 5000, "milestones": []},
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
            compute=RunCompute(ranks_per_worker=num_ranks),
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

    def log(self, attempt: int, *, rank: int) -> str:
        path = self.folder / f"work-{attempt}" / "logs" / f"rank-{rank}.log"
        return path.read_text() if path.exists() else ""

    def wait_for_log(self, text: str, process: "subprocess.Popen[bytes]", *, attempt: int) -> None:
        """Until the first rank has logged `text`, which it does at once."""
        until = time.monotonic() + DEADLINE_SECONDS
        while text not in self.log(attempt, rank=0):
            assert process.poll() is None, self.console(attempt)
            assert time.monotonic() < until, self.console(attempt)
            time.sleep(0.05)

    def console(self, attempt: int) -> str:
        return (self.folder / f"console-{attempt}").read_text()

    def wait_for_step(self, step: int, process: "subprocess.Popen[bytes]") -> None:
        until = time.monotonic() + DEADLINE_SECONDS
        while self.progress.step < step:
            assert process.poll() is None, self.console(1)
            assert time.monotonic() < until, self.console(1)
            time.sleep(0.2)
