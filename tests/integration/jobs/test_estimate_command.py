"""`anneal estimate`: from a config.json alone to a table, a verdict and the nearest setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.unit.pipeline.families import COMMON, make_family
from tests.unit.pipeline.kit import write_model
from transformers import LlamaConfig
from typer.testing import CliRunner, Result

from anneal_jobs.cli import estimate as estimating
from anneal_jobs.cli.estimate import RAY_BYTES
from anneal_jobs.cli.main import app


def write_job(path: Path, *, model: Path) -> Path:
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
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job whose model folder has a config.json and empty files for what is not read."""
    model = tmp_path / "model"
    make_family("llama").config.save_pretrained(model)
    for name in ("model.safetensors", "tokenizer.json"):
        (model / name).write_bytes(b"")
    return write_job(tmp_path / "job.yaml", model=model)


def estimate(job: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["estimate", str(job), *options])


def test_what_fits_is_shown_part_by_part(job: Path) -> None:
    done = estimate(job, "--memory", "64Gi")
    assert done.exit_code == 0, done.output
    for part in ("libraries", "weights", "adapters", "optimizer", "activations", "peak", "limit"):
        assert part in done.stdout
    for line in ("a step in all", "loading the model"):
        assert line in done.stdout
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
    asked = ("--gpu-memory", room, *wide[2:], "--set", "training.microBatchSize=512")
    done = estimate(job, *asked, "--set", "training.recovery.oom=fail")
    assert done.exit_code == 65
    nearest = json.loads(done.stdout)["nearest"]
    assert 128 <= nearest["microBatchSize"] < 512
    assert f"set training.microBatchSize to {nearest['microBatchSize']}" in done.stderr
    lowered = estimate(job, *asked)
    assert lowered.exit_code == 0, lowered.output
    taken = json.loads(lowered.stdout)
    assert taken["microBatchSize"] == nearest["microBatchSize"]
    assert taken["verdict"] == "fits"


@pytest.fixture
def wide_job(tmp_path: Path) -> Path:
    """Of a model whose weights are large beside all else that a step needs."""
    sizes = {**COMMON, "hidden_size": 1024, "intermediate_size": 16384}
    model = tmp_path / "model"
    LlamaConfig(**sizes).save_pretrained(model)
    for name in ("model.safetensors", "tokenizer.json"):
        (model / name).write_bytes(b"")
    return write_job(tmp_path / "job.yaml", model=model)


def test_what_cannot_be_loaded_is_refused_with_a_setting_that_can(wide_job: Path) -> None:
    fp4 = ("--output", "json", "--set", "tuning.method=qlora")
    fp4 += ("--set", "tuning.quantization.type=fp4")
    whole = json.loads(estimate(wide_job, "--memory", "64Gi", *fp4).stdout)
    assert whole["peakBytes"] == whole["loadingBytes"] > sum(whole["parts"].values())
    others = whole["parts"]["libraries"] + whole["parts"]["Ray"]
    room = str(int(others + (whole["loadingBytes"] - others) / 1.4))
    done = estimate(wide_job, "--memory", room, *fp4)
    assert done.exit_code == 65
    assert "The model cannot be loaded: that needs about" in done.stderr
    assert "set tuning.quantization.type to nf4" in done.stderr
    assert json.loads(done.stdout)["nearest"]["base"] == {"tuning.quantization.type": "nf4"}


def test_a_base_in_4_bits_is_named_where_no_setting_of_a_step_helps(wide_job: Path) -> None:
    plain = ("--output", "json", "--set", "training.batchSize=1")
    in_4_bits = ("--gpu-memory", "64Gi", *plain, "--set", "tuning.method=qlora")
    needed = json.loads(estimate(wide_job, *in_4_bits).stdout)["peakBytes"]
    done = estimate(wide_job, "--gpu-memory", str(int(1.2 * needed)), *plain)
    assert done.exit_code == 65
    assert json.loads(done.stdout)["nearest"] == {
        "microBatchSize": 1,
        "sequenceLength": 64,
        "gradientCheckpointing": True,
        "base": {"tuning.method": "qlora"},
        "peakBytes": needed,
    }
    assert "The run does not fit: it needs about" in done.stderr
    assert "set tuning.method to qlora, which needs about" in " ".join(done.stderr.split())
    hopeless = estimate(wide_job, "--gpu-memory", "1Mi", "--set", "training.batchSize=1")
    assert "; take a smaller model or more memory" in " ".join(hopeless.stderr.split())


@pytest.mark.parametrize("option", ["--memory", "--gpu-memory"])
def test_a_size_that_is_none_is_wrong_usage(job: Path, option: str) -> None:
    done = estimate(job, option, "lots")
    assert done.exit_code == 2
    assert f"{option}: got lots, expected a size such as 24Gi" in done.stderr


@pytest.mark.parametrize("option", ["--memory", "--gpu-memory"])
def test_a_size_without_its_unit_is_wrong_usage(job: Path, option: str) -> None:
    done = estimate(job, option, "24")
    assert done.exit_code == 2
    assert f"{option}: got 24, which is 24 bytes, too little for any model" in done.stderr


def test_a_pod_holds_ray_too_and_this_machine_does_not(job: Path) -> None:
    parts = [
        json.loads(estimate(job, *options, "--output", "json").stdout)["parts"]
        for options in (("--memory", "64Gi"), ())
    ]
    assert parts[0]["Ray"] == RAY_BYTES
    assert "Ray" not in parts[1]


@pytest.mark.parametrize(
    "setting",
    [
        'tuning.newTokens=["<tool>"]',
        "tuning.lora.initialization=pissa",
        "training.packing=true",
        "tuning.lora.useDora=true",
    ],
)
def test_whatever_a_job_may_ask_for_is_planned(tmp_path: Path, setting: str) -> None:
    model = write_model(tmp_path / "model")
    job = write_job(tmp_path / "job.yaml", model=model)
    plain, asked = (
        json.loads(estimate(job, "--memory", "64Gi", "--output", "json", *options).stdout)
        for options in ((), ("--set", setting))
    )
    assert asked["peakBytes"] - asked["parts"]["libraries"] > (
        plain["peakBytes"] - plain["parts"]["libraries"]
    )


def test_the_highest_rank_within_memory_is_found_with_usual_ones_by_task(job: Path) -> None:
    asked = ("--max-rank", "--memory", "64Gi", "--output", "json")
    found = json.loads(estimate(job, *asked).stdout)
    assert found["maxRank"] == 16, "the narrowest weight of the model has 16 rows"
    assert (found["alpha"], found["nextRank"], found["nextPeakBytes"]) == (32, 32, None)
    assert found["peakBytes"] == sum(found["parts"].values())
    assert found["peakBytes"] <= found["memoryShare"] * found["limitBytes"]
    tasks = {task["task"]: task["allowed"] for task in found["tasks"]}
    assert tasks["style and tone"] == [4, 8]
    assert tasks["following instructions"] == [16, 16]
    assert tasks["code"] is None
    done = estimate(job, "--max-rank", "--memory", "64Gi")
    assert done.exit_code == 0, done.output
    assert "rank 32 is more than a weight of the model has" in " ".join(done.stdout.split())
    for text in ("adapters", "peak", "limit", "Memory bounds the rank, the task chooses it"):
        assert text in done.stdout
    assert "16 (of 16 to 32)" in done.stdout


@pytest.mark.parametrize(
    ("asked", "option"),
    [(("--set", "compute.gpusPerWorker=1"), "--gpu-memory"), ((), "--memory")],
    ids=["GPU", "CPU"],
)
def test_without_a_limit_the_option_that_is_missing_is_named_as_wrong_usage(
    job: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], option: str
) -> None:
    monkeypatch.setattr(estimating, "limit_on_cpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = estimate(job, "--max-rank", *asked)
    assert done.exit_code == 2
    assert " ".join(done.stderr.split()).endswith(
        "error: anneal estimate --max-rank: nothing tells how much memory there is; name it, for "
        f"example with {option} 24Gi"
    )


def test_memory_bounds_the_rank(job: Path) -> None:
    wide = ("--gpu-memory", "64Gi", "--output", "json", "--set", "training.microBatchSize=1")
    sizes = {
        rank: json.loads(estimate(job, *wide, "--set", f"tuning.lora.rank={rank}").stdout)[
            "peakBytes"
        ]
        for rank in (8, 16)
    }
    room = str(int((sizes[8] + sizes[16]) / 2 / 0.8))
    asked = ("--max-rank", "--gpu-memory", room, *wide[2:], "--set", "tuning.lora.rank=4")
    found = json.loads(estimate(job, *asked).stdout)
    assert (found["maxRank"], found["peakBytes"]) == (8, sizes[8])
    assert (found["nextRank"], found["nextPeakBytes"]) == (16, sizes[16])
    nothing = estimate(job, "--max-rank", "--gpu-memory", "64Ki", *wide[2:])
    assert nothing.exit_code == 65
    assert "Not even rank 4 stays within 80%" in " ".join(nothing.stderr.split())
