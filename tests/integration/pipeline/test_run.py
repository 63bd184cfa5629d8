"""Whole runs of the pipeline on a tiny model: what they leave behind, and being interrupted."""

from __future__ import annotations

import gc
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from anneal_pipeline.checkpoint.manifest import sha256_of
from anneal_pipeline.errors import UserError


@pytest.fixture
def rows(kit: ModuleType, tmp_path: Path) -> Path:
    path: Path = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(30))
    return path


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "out" / "artifacts" / "adapter" / "adapter_model.safetensors")


def assert_equal_bits(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    assert [name for name in want if not torch.equal(got[name], want[name])] == []


METHODS = [
    pytest.param({"method": "lora", "lora": {"rank": 4, "dropout": 0.1}}, id="fp32 LoRA"),
    pytest.param({"method": "qlora", "lora": {"rank": 4, "dropout": 0.1}}, id="NF4"),
]


@pytest.mark.parametrize("tuning", METHODS)
def test_a_run_stopped_twice_ends_bit_equal_to_one_that_was_not(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, tuning: dict[str, Any]
) -> None:
    config = kit.make_config(tuning=tuning, evaluation={"everySteps": 2, "numGenerations": 0})
    whole = kit.run(tmp_path / "whole", config, model_dir=model_dir, rows=rows)
    assert not whole.interrupted

    losses: list[tuple[int, float]] = []
    for attempt, stop_at in ((1, 2), (2, 3), (3, None)):
        observer = kit.RecordingObserver(stop_at=stop_at)
        result = kit.run(
            tmp_path / "parts",
            config,
            model_dir=model_dir,
            rows=rows,
            attempt=attempt,
            observer=observer,
        )
        losses += [(report.step, report.loss) for report in observer.steps]
        assert result.interrupted == (stop_at is not None)
    want = kit.RecordingObserver()
    kit.run(tmp_path / "again", config, model_dir=model_dir, rows=rows, observer=want)
    assert losses == [(report.step, report.loss) for report in want.steps]
    assert_equal_bits(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert result.tuned_metrics == whole.tuned_metrics
    assert result.artefact_digest == whole.artefact_digest


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the pipeline handles it."""


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_killed_between_checkpoints_ends_bit_equal(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, step: int
) -> None:
    config = kit.make_config(
        checkpoint={"everySteps": 2}, evaluation={"everySteps": 6, "numGenerations": 0}
    )

    class Dying(kit.RecordingObserver):  # type: ignore[name-defined,misc]
        def on_step(self, report: Any) -> None:
            if report.step == step:
                raise Killed

    kit.run(tmp_path / "whole", config, model_dir=model_dir, rows=rows)
    parts = tmp_path / "parts"
    with pytest.raises(Killed):
        kit.run(parts, config, model_dir=model_dir, rows=rows, observer=Dying())
    observer = kit.RecordingObserver()
    kit.run(parts, config, model_dir=model_dir, rows=rows, attempt=2, observer=observer)
    assert observer.steps[0].step == (step - 1) // 2 * 2 + 1
    assert_equal_bits(weights(parts), weights(tmp_path / "whole"))


@pytest.fixture
def finished(kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path) -> Any:
    config = kit.make_config(
        evaluation={
            "prompts": ["What is 2 plus 2?"],
            "metrics": ["responsePerplexity", "perplexity", "tokenAccuracy"],
        },
        checkpoint={"milestones": [50, 100]},
        model={"uri": "hf://org/tiny", "revision": "abc123"},
    )
    observer = kit.RecordingObserver()
    result = kit.run(tmp_path, config, model_dir=model_dir, rows=rows, observer=observer)
    return result, observer


def test_a_finished_run_leaves_the_promised_folder(
    kit: ModuleType, finished: Any, model_dir: Path, tmp_path: Path
) -> None:
    result, observer = finished
    out = tmp_path / "out"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files >= {
        "config.json",
        "data/report.json",
        "data/quarantine.jsonl",
        "data/train/rows.jsonl",
        "data/train/tokens.safetensors",
        "evaluation/report.json",
        "evaluation/report.md",
        "evaluation/report.html",
        "artifacts/manifest.json",
        "artifacts/adapter/adapter_model.safetensors",
        "artifacts/adapter/adapter_config.json",
        "artifacts/adapter/tokenizer.json",
        "artifacts/adapter/chat_template.jinja",
        "milestones/checkpoint-50pct/training_state.json",
        "milestones/checkpoint-100pct/adapter_model.safetensors",
    }
    assert not [name for name in files if "scratch" in name or name.endswith((".bin", ".pt"))]
    num_trained = sum(tensor.numel() for tensor in weights(tmp_path).values())
    [said] = [message for name, message in observer.events if name == "model-ready"]
    assert re.fullmatch(
        rf"Training {num_trained:,} of [\d,]+ parameters \(\d+\.\d\d %\) in 14 adapters, "
        "computing in float32 on cpu",
        said,
    )
    assert result.artefact_digest == sha256_of(out / "artifacts" / "manifest.json")
    adapter = json.loads((out / "artifacts/adapter/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "org/tiny"
    assert adapter["revision"] == "abc123"
    assert {path.name for path in observer.outputs} >= {"config.json", "data", "evaluation"}

    in_force = json.loads((out / "config.json").read_text())
    for section in ("evaluation", "checkpoint"):
        assert in_force[section]["everySteps"] > 0

    report = json.loads((out / "evaluation/report.json").read_text())
    assert report["base"].keys() == report["tuned"].keys()
    assert report["tuned"]["responsePerplexity"] < report["base"]["responsePerplexity"]
    assert report["answers"][0]["prompt"] == "What is 2 plus 2?"

    base = AutoModelForCausalLM.from_pretrained(model_dir)
    PeftModel.from_pretrained(base, out / "artifacts" / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(out / "artifacts" / "adapter")
    assert tokenizer.chat_template == kit.CHATML


def test_another_configuration_is_no_continuation(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    quick = {"numGenerations": 0, "baseline": False}
    first = kit.make_config(training={"maxSteps": 2}, evaluation=quick)
    kit.run(tmp_path, first, model_dir=model_dir, rows=rows)
    other = kit.make_config(training={"maxSteps": 2, "learningRate": 0.5}, evaluation=quick)
    with pytest.raises(UserError, match="belongs to another run") as caught:
        kit.run(tmp_path, other, model_dir=model_dir, rows=rows, attempt=2)
    assert caught.value.reason == "RunChanged"


def test_a_loss_that_is_no_number_fails_honestly(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    """Pitfall: all-NaN adapter saved as success."""
    evaluation = {"baseline": False, "numGenerations": 0, "everySteps": 6}
    config = kit.make_config(evaluation=evaluation, training={"recovery": {"nan": "fail"}})

    class Poisoning(kit.RecordingObserver):  # type: ignore[name-defined,misc]
        """Puts a NaN into the weights after the second step, as broken hardware would."""

        def on_step(self, report: Any) -> None:
            if report.step == 2:
                for tensor in gc.get_objects():
                    if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad:
                        tensor.data.fill_(float("nan"))

    with pytest.raises(UserError, match=r"no numbers after step 2") as caught:
        kit.run(tmp_path, config, model_dir=model_dir, rows=rows, observer=Poisoning())
    assert caught.value.reason == "NonFiniteLoss"
