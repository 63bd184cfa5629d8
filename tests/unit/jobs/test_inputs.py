"""A mistake in a job is met before Ray, torch or MLflow is even imported."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from anneal_jobs.attempt import Attempt, AttemptFolders
from anneal_jobs.inputs import check_inputs, fetch_inputs
from anneal_operator.api.run_config import JobIdentity, RunConfig, RunTracking
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.errors import UserError


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (model / name).write_text("{}")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    sections = {
        "model": {"uri": str(model)},
        "dataset": {"uri": str(tmp_path / "rows.jsonl")},
    }
    config = RunConfig(
        job=JobIdentity(namespace="team-a", name="job", uid="uid-1"),
        pipeline=PipelineConfig.parse(sections),
        output_uri=str(tmp_path / "out"),
        tracking=RunTracking(
            uri="http://127.0.0.1:1", experiment="e", registered_model="m", alias="candidate"
        ),
    )
    return Attempt(
        config=config,
        number=1,
        trusts_prepared_data=False,
        writer_name="1f2e3d4c",
        run_id="run",
        folders=AttemptFolders(scratch=tmp_path / "work"),
    )


def test_inputs_in_order_pass_and_the_output_is_proven(attempt: Attempt, tmp_path: Path) -> None:
    check_inputs(attempt)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model"]


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (remove, "rows.jsonl", "DatasetNotFound"),
        (empty, "rows.jsonl", "DatasetEmpty"),
        (remove, "model/model.safetensors", "ModelNotSafetensors"),
        (remove, "model/config.json", "ModelUnsupported"),
        (empty, "model/config.json", "ModelUnsupported"),
        (remove, "model/tokenizer.json", "ModelUnsupported"),
    ],
)
def test_the_look_and_the_fetch_say_the_same(
    attempt: Attempt, tmp_path: Path, damage: object, file: str, reason: str
) -> None:
    assert callable(damage)
    damage(tmp_path / file)
    with pytest.raises(UserError) as looked:
        check_inputs(attempt)
    with pytest.raises(UserError) as fetched:
        fetch_inputs(attempt, workspace=tmp_path / "w", on_bytes=lambda done, total: None)
    assert (looked.value.reason, looked.value.message) == (reason, fetched.value.message)
    assert str(tmp_path / file.split("/", 1)[0]) in looked.value.message


def test_a_later_attempt_needs_no_dataset_that_is_prepared(
    attempt: Attempt, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "report.json").write_text("{}")
    check_inputs(replace(attempt, number=2, trusts_prepared_data=True))
    with pytest.raises(UserError):
        check_inputs(attempt)


def test_looking_imports_nothing_heavy() -> None:
    code = (
        "import sys, anneal_jobs.train\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'ray', 'peft'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
