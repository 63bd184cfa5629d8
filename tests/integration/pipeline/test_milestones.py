"""Adapters at shares of the way: each loads, and says where the run stood."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import pairwise
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS = 7
PERCENTS = (25, 50, 75, 100)


def config_of(kit: ModuleType) -> Any:
    return kit.make_config(
        training={"maxSteps": STEPS},
        evaluation={"everySteps": 3, "numGenerations": 0, "baseline": False},
        checkpoint={"everySteps": 1, "keep": 2, "milestones": list(PERCENTS)},
        export={"verify": False},
    )


def test_milestones_at_25_50_75_100_percent_are_adapters_that_load_and_stay(
    kit: ModuleType, model_dir: Path, tmp_path: Path
) -> None:
    rows = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(20))
    observer = kit.RecordingObserver()
    kit.run(tmp_path, config_of(kit), model_dir=model_dir, rows=rows, observer=observer)
    reports = {report.step: report for report in observer.steps}
    seen = []
    for percent in PERCENTS:
        folder = tmp_path / "out" / "milestones" / f"checkpoint-{percent}pct"
        facts = json.loads((folder / "training_state.json").read_text())
        report = reports[ceil(STEPS * percent / 100)]
        assert facts.pop("progressPercent") == percent
        assert datetime.fromisoformat(facts.pop("timestamp")).tzinfo is not None
        assert facts == {
            "step": report.step,
            "epoch": report.epoch,
            "loss": report.loss,
            "learningRate": pytest.approx(report.learning_rate),
        }
        base = AutoModelForCausalLM.from_pretrained(model_dir)
        loaded = PeftModel.from_pretrained(base, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            ids = torch.tensor([tokenizer("What is 2 plus 4?")["input_ids"]])
            seen.append(loaded(input_ids=ids).logits)
        assert folder in observer.outputs
    assert not any(torch.equal(a, b) for a, b in pairwise(seen))
    kept = [name.split("-")[1] for name in kit.make_store(tmp_path).names()]
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert kept[:2] == ["000007", "000006"]
    assert set(kept) == {"000007", "000006", f"{best['step']:06d}"}


def test_a_milestone_lost_with_its_pod_is_written_again_by_the_attempt_that_resumes_there(
    kit: ModuleType, model_dir: Path, tmp_path: Path
) -> None:
    rows = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(20))
    options = {"model_dir": model_dir, "rows": rows}
    stopping = kit.RecordingObserver(stop_at=4)
    kit.run(tmp_path, config_of(kit), observer=stopping, **options)
    lost = tmp_path / "out" / "milestones" / "checkpoint-50pct"
    adapter = (lost / "adapter_model.safetensors").read_bytes()
    facts = json.loads((lost / "training_state.json").read_text())
    for path in lost.iterdir():
        path.unlink()
    kit.run(tmp_path, config_of(kit), attempt=2, **options)
    assert (lost / "adapter_model.safetensors").read_bytes() == adapter
    again = json.loads((lost / "training_state.json").read_text())
    assert again.pop("timestamp") >= facts.pop("timestamp")
    assert again == facts
    assert facts["step"] == 4
