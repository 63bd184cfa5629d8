"""Diagnoses as runs make them: each provoked in a real one, and none in a healthy one."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.integration.pipeline.mishaps import config_of, scale_adapters, told
from transformers import LlamaConfig, LlamaForCausalLM

from anneal_pipeline import opening
from anneal_pipeline.model import loading
from anneal_pipeline.model.beginning import is_beginning
from anneal_pipeline.model.loading import load_tuned_model
from anneal_pipeline.observer import StepReport
from anneal_pipeline.training.batches import Collator

SHORT = {"maxSteps": 1}


def said_by(
    kit: ModuleType, root: Path, config: Any, *, model_dir: Path, rows: Path, **options: Any
) -> list[str]:
    observer = kit.RecordingObserver()
    kit.run(root, config, model_dir=model_dir, rows=rows, observer=observer, **options)
    return told(observer, "diagnosis")


def test_a_diagnosis_is_said_once_also_over_a_resume(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    config = config_of(kit, training={"batchSize": 2, "maxSteps": 4})
    said = []
    for attempt, stop_at in ((1, 2), (2, None)):
        observer = kit.RecordingObserver(stop_at=stop_at)
        options = {"attempt": attempt, "observer": observer}
        kit.run(tmp_path, config, model_dir=model_dir, rows=rows, **options)
        said.append(told(observer, "diagnosis"))
    assert [len(messages) for messages in said] == [1, 0]
    assert said[0][0].startswith("Every step sees only 2 rows: ")


@pytest.mark.parametrize("initialization", ["default", "pissa"])
def test_a_healthy_run_with_a_baseline_hears_nothing(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, initialization: str
) -> None:
    config = kit.make_config(
        tuning={"method": "lora", "lora": {"rank": 4, "initialization": initialization}},
        training={"maxSteps": 14},
        evaluation={"everySteps": 7},
    )
    assert said_by(kit, tmp_path, config, model_dir=model_dir, rows=rows) == []


def test_one_row_far_longer_than_the_others_is_told_of_and_stands_in_the_report(
    kit: ModuleType, model_dir: Path, tmp_path: Path
) -> None:
    long = kit.chat("What is 1 plus 1?", "It is 2. " * 150)
    rows = kit.write_rows(tmp_path / "rows.jsonl", [*kit.sums(40), long])
    config = config_of(kit, training={**SHORT, "sequenceLength": 1024})
    [said] = said_by(kit, tmp_path, config, model_dir=model_dir, rows=rows)
    assert said.startswith("The longest training row has ")
    assert ": 1 row has more than " in said
    assert "The longest training row has" in (tmp_path / "out" / "data" / "report.md").read_text()


def test_a_model_that_is_sure_of_the_wrong_begins_too_high_with_large_gradients(
    kit: ModuleType, rows: Path, tmp_path: Path
) -> None:
    model_dir = kit.write_model(tmp_path / "model", spread=1.0)
    first, norm = said_by(
        kit, tmp_path, config_of(kit, training=SHORT), model_dir=model_dir, rows=rows
    )
    assert first.startswith("The first training loss is ")
    assert norm.startswith("The gradient norm is ")
    assert "it is clipped to 1" in norm


def test_gradients_that_do_not_reach_the_adapters_are_told(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    """Behind an output head of zeros, as a damaged file has it."""
    deaf = shutil.copytree(model_dir, tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(model_dir)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    model.save_pretrained(deaf)
    [said] = said_by(kit, tmp_path, config_of(kit, training=SHORT), model_dir=deaf, rows=rows)
    assert said.startswith("The gradient norm is 0 at step 1: hardly any gradient reaches")


def test_a_tokenizer_smaller_than_the_embeddings_is_told(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    llama = LlamaConfig.from_pretrained(model_dir, vocab_size=1000)
    other = kit.save_model(tmp_path / "model", llama)
    [said] = said_by(kit, tmp_path, config_of(kit, training=SHORT), model_dir=other, rows=rows)
    assert "tokens, the model has embeddings for 1000: the tokenizer is that of another" in said


def test_adapters_that_do_not_begin_as_the_base_are_told_before_the_first_step(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def damaged(*args: Any, **options: Any) -> Any:
        tuned = load_tuned_model(*args, **options)
        for name, parameter in tuned.model.named_parameters():
            if is_beginning(name):
                parameter.data.mul_(30.0)
        return tuned

    monkeypatch.setattr(opening, "load_tuned_model", damaged)
    config = config_of(
        kit,
        training=SHORT,
        tuning={"method": "lora", "lora": {"rank": 4, "initialization": "pissa"}},
    )
    said = said_by(kit, tmp_path, config, model_dir=model_dir, rows=rows)[0]
    assert said.startswith("Before the first step the adapted model has a loss of ")
    assert "set tuning.lora.initialization to default" in said


def test_a_base_that_is_not_frozen_is_an_error_of_ours(
    kit: ModuleType, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = loading.add_adapters

    def thawed(*args: Any, **options: Any) -> Any:
        tuned = added(*args, **options)
        tuned.get_input_embeddings().weight.requires_grad_(True)
        return tuned

    monkeypatch.setattr(loading, "add_adapters", thawed)
    with pytest.raises(RuntimeError, match=r"1 parameters of the base .*embed_tokens\.weight;"):
        load_tuned_model(config_of(kit), folder=model_dir, device=torch.device("cpu"))


def test_rows_that_take_long_to_lay_out_are_told_with_their_share_of_a_step(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    lay_out = Collator.__call__

    def slow(self: Collator, sequences: Any) -> Any:
        now[0] += 0.5
        return lay_out(self, sequences)

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr(Collator, "__call__", slow)
    config = config_of(kit, training={"maxSteps": 10})
    said = said_by(kit, tmp_path, config, model_dir=model_dir, rows=rows, clock=clock)
    [data] = [message for message in said if "laying out its rows" in message]
    assert data.startswith("96% of a step is spent on laying out its rows (0.51 s, beside 0.02 s")


def test_a_result_that_is_worse_than_its_base_is_told_at_the_end(
    kit: ModuleType, rows: Path, tmp_path: Path
) -> None:
    class TurningRound(kit.RecordingObserver):  # type: ignore[misc,name-defined]
        def on_step(self, report: StepReport) -> None:
            super().on_step(report)
            if report.step == report.total_steps:
                scale_adapters(-30.0)

    model_dir = kit.write_model(tmp_path / "model", spread=0.3)
    observer = TurningRound()
    config = kit.make_config(training={"maxSteps": 4}, export={"verify": False})
    kit.run(tmp_path, config, model_dir=model_dir, rows=rows, observer=observer)
    [worse] = [message for message in told(observer, "diagnosis") if "than its base" in message]
    before, after = (
        next(e.metrics["responsePerplexity"] for e in observer.evaluations if e.subject == subject)
        for subject in ("base", "tuned")
    )
    assert f"response perplexity {after:.4g} against {before:.4g}" in worse
    assert "lower training.learningRate from 0.01 to 0.003" in worse
