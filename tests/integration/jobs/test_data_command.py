"""`anneal data inspect` as a person types it: no weights, no training, a page to look at."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .tiny import write_rows

JOB = """
apiVersion: anneal.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tiny}
spec:
  model: {uri: model}
  dataset: {uri: data}
  training: {sequenceLength: 32}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A job whose model has names but no readable weights, and data in a folder already split."""
    (tmp_path / "model").mkdir()
    for file in tiny_model.iterdir():
        if file.suffix == ".safetensors":
            (tmp_path / "model" / file.name).write_bytes(b"not weights")
        elif file.is_file():
            (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "data").mkdir()
    rows = write_rows(tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "data" / "train.jsonl.gz").write_bytes(gzip.compress(rows + b'{"messages": []}\n'))
    (tmp_path / "data" / "test.csv").write_text("question,answer\nWhat is held out?,This row is\n")
    (tmp_path / "data" / "README.md").write_text("no data")
    return tmp_path


def inspect(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "anneal_jobs.cli.main", "data", "inspect", "job.yaml", *arguments],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )


def test_it_tells_what_would_be_trained_and_writes_the_page(folder: Path) -> None:
    done = inspect(
        folder, "--set", "dataset.uri=data/train.jsonl.gz", "--set", "training.packing=true"
    )
    assert done.returncode == 0, done.stderr
    assert "layout messages of jsonl" in done.stdout
    assert "dropped 1: no-assistant-message" in done.stdout
    assert f"page {folder / 'tiny-data' / 'report.html'}" in done.stdout
    report = json.loads((folder / "tiny-data" / "report.json").read_text())
    assert report["splits"]["validation"]["num_rows"] > 0
    packed = f"packed: {report['packing']['num_sequences']} sequences of up to 32 tokens, "
    assert packed in done.stdout


def test_a_folder_that_is_no_data_is_not_emptied(folder: Path) -> None:
    done = inspect(folder, "--output", "data")
    assert done.returncode == 1
    assert "would be emptied" in done.stderr
    assert (folder / "data" / "README.md").is_file()


def test_what_is_wrong_with_the_data_is_the_users_to_mend(folder: Path) -> None:
    done = inspect(folder, "--set", "dataset.uri=data/README.md")
    assert done.returncode == 65
    assert "README.md does not tell its format" in done.stderr
