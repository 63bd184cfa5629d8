"""`anneal estimate`: from a config.json alone to a table, a verdict and the nearest setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.pipeline.families import make_family
from typer.testing import CliRunner, Result

from anneal_jobs.cli.main import app


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job whose model folder has a config.json and empty files for what is not read."""
    model = tmp_path / "model"
    make_family("llama").config.save_pretrained(model)
    for name in ("model.safetensors", "tokenizer.json"):
        (model / name).write_bytes(b"")
    spec: dict[str, Any] = {
        "model": {"uri": str(model)},
        "dataset": {"uri": "rows.jsonl"},
        "tuning": {"method": "lora"},
        "training": {"sequenceLength": 64},
    }
    document = {
        "apiVersion": "anneal.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "small"},
        "spec": spec,
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def estimate(job: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["estimate", str(job), *options])


def test_what_fits_is_shown_part_by_part(job: Path) -> None:
    done = estimate(job, "--memory", "64Gi")
    assert done.exit_code == 0, done.output
    for part in ("libraries", "weights", "adapters", "optimizer", "activations", "peak", "limit"):
        assert part in done.stdout
    assert "8 sequences of up to 64 tokens per forward pass" in done.stdout


def test_json_adds_up(job: Path) -> None:
    done = estimate(job, "--memory", "64Gi", "--output", "json")
    data = json.loads(done.stdout)
    assert data["fits"] is True
    assert data["peakBytes"] == sum(data["parts"].values())
    assert data["limitBytes"] == 64 << 30
    assert data["nearest"] is None


def test_what_cannot_fit_is_refused_with_exit_code_65(job: Path) -> None:
    done = estimate(job, "--memory", "100Mi", "--set", "training.microBatchSize=4")
    assert done.exit_code == 65
    assert "The run does not fit: it needs about" in done.stderr


def test_the_nearest_setting_is_named(job: Path) -> None:
    wide = ("--gpu-memory", "64Gi", "--output", "json", "--set", "training.batchSize=512")
    sizes = {
        rows: json.loads(estimate(job, *wide, "--set", f"training.microBatchSize={rows}").stdout)[
            "peakBytes"
        ]
        for rows in (512, 128)
    }
    room = str(int(sizes[128] * 1.2))
    done = estimate(job, "--gpu-memory", room, *wide[2:], "--set", "training.microBatchSize=512")
    assert done.exit_code == 65
    nearest = json.loads(done.stdout)["nearest"]
    assert 128 <= nearest["microBatchSize"] < 512
    assert f"set training.microBatchSize to {nearest['microBatchSize']}" in done.stderr


def test_a_size_that_is_none_is_refused(job: Path) -> None:
    done = estimate(job, "--memory", "lots")
    assert done.exit_code == 65
    assert "--memory: got lots, expected a size such as 24Gi" in done.stderr
