"""`anneal run` as a person types it: a process of its own, local folders, SQLite."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from anneal_operator.api.names import TAG_JOB_NAME

from .tiny import write_rows

DEADLINE_SECONDS = 900.0
JOB = """
apiVersion: anneal.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tiny}
spec:
  model: {uri: model}
  dataset: {uri: rows.jsonl}
  tuning: {method: lora, lora: {rank: 4, alpha: 8}}
  training: {maxSteps: 6, batchSize: 2, learningRate: 5e-3, sequenceLength: 32}
  evaluation: {numGenerations: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "job.yaml").write_text(JOB)
    write_rows(tmp_path / "rows.jsonl")
    return tmp_path


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "NO_COLOR": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        [sys.executable, "-m", "anneal_jobs.cli.main", "run", "-f", "job.yaml", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, stdout, stderr


def loaded_elsewhere(page: str, *, tmp_path: Path) -> str:
    """The kind of model that the code at the end of the page makes in another folder."""
    code = [line.removeprefix("    ") for line in page.partition("\nload it ")[2].splitlines()[1:]]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*code, "print(type(model).__name__)"])],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run_client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'anneal-runs' / 'mlflow.db'}")


def test_a_job_is_interrupted_resumed_done_and_not_done_again(folder: Path) -> None:
    steps = "training.maxSteps=80"
    process = start(folder, "--set", steps)
    assert process.stderr is not None
    first_step = next((line for line in process.stderr if line.startswith("step ")), "")
    assert first_step.startswith("step 1/80  loss ")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    code, _, stderr = finish(process)
    assert code == 75, stderr
    assert "Run the same command again" in stderr
    client = run_client(folder)
    [run] = client.search_runs(["1"], filter_string=f"tags.`{TAG_JOB_NAME}` = 'tiny'")
    assert run.info.status == "KILLED"
    assert "Interrupted, not failed" in run.data.tags["mlflow.note.content"]
    assert "The same command" in run.data.tags["mlflow.note.content"]
    kind = client.get_experiment("1").tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"

    two_ranks = ("--set", "compute.ranksPerWorker=2")
    code, stdout, stderr = finish(start(folder, "--set", steps, *two_ranks))
    assert code == 0, stderr
    assert "Resuming from step" in stderr
    assert "this process trains alone" in stderr
    events = (folder / "anneal-runs/tiny/logs/attempt-02/events.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in events if '"step",' in line][-1] == 80
    assert "responsePerplexity" in stdout
    assert "tiny/1 (alias candidate)" in stdout
    assert (folder / "anneal-runs/tiny/artifacts/adapter/adapter_model.safetensors").is_file()

    [run] = client.search_runs(["1"], filter_string=f"tags.`{TAG_JOB_NAME}` = 'tiny'")
    assert f"http://127.0.0.1:5000/#/experiments/1/runs/{run.info.run_id}?" in stdout
    assert "/bin/mlflow server --backend-store-uri sqlite:///" in stdout
    report = next(line for line in stdout.splitlines() if line.startswith("report "))
    assert Path(report.split(maxsplit=1)[1]).is_file()
    assert loaded_elsewhere(stdout, tmp_path=folder / "cache") == "PeftModelForCausalLM"
    assert "Load it" in run.data.tags["mlflow.note.content"]
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 81))
    assert run.info.status == "FINISHED"
    stages = ("start", "prepare", "load", "evaluate-base", "train", "evaluate", "export")
    measured = [f"memory/{stage}/process_megabytes" for stage in stages]
    measured += ["memory/peak/process_megabytes", "model/base_megabytes"]
    assert [name for name in measured if name not in run.data.metrics] == []
    assert 0 < run.data.metrics["model/trainable_share"] < 1
    assert run.data.metrics["model/compression_ratio"] > 0.49  # 0.5: it is held in fp32

    kept = folder / "anneal-runs/tiny/logs/attempt-02/config.json"
    asked = json.loads(kept.read_text())
    del asked["tuning"]["lora"]["useDora"]  # as by a release that does not know the field yet
    kept.write_text(json.dumps(asked))
    code, stdout, stderr = finish(start(folder, "--set", steps))
    assert (code, "is done already" in stderr) == (0, True)
    assert "tiny/1 (alias candidate)" in stdout
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        pytest.param(
            ("--set", "dataset.uri=gone.jsonl"), "no dataset at gone.jsonl", id="no dataset"
        ),
        pytest.param(("--set", "model.uri=gone"), "no model at gone", id="no model"),
        pytest.param(("--set", "training.maxSteps=x"), "spec.training.maxSteps", id="wrong type"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr(
    folder: Path, arguments: tuple[str, ...], part: str
) -> None:
    code, stdout, stderr = finish(start(folder, *arguments))
    assert (code, stdout) == (65, "")
    [line] = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert part in line
    assert "Traceback" not in stderr


def test_a_stop_while_data_are_prepared_is_a_planned_one(folder: Path) -> None:
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        for number in range(100_000):
            asked = {"role": "user", "content": f"what is {number}"}
            said = {"role": "assistant", "content": "blue"}
            file.write(json.dumps({"messages": [asked, said]}) + "\n")
    process = start(folder)
    assert process.stderr is not None
    assert any("preparing data" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    code, _, stderr = finish(process)
    assert code == 75, stderr
    assert "Stopped on request before training began" in stderr
    assert not (folder / "anneal-runs" / "tiny" / "data").exists()
    assert "Traceback" not in (folder / "anneal-runs/tiny/logs/attempt-01/run.log").read_text()
