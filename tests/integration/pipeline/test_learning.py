"""A model learns what it is shown, and when to stop."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.evaluation.answers import Answerer
from anneal_pipeline.evaluation.questions import question_of_prompt
from anneal_pipeline.model.loading import load_tokenizer
from anneal_pipeline.model.quantization import quantization_settings
from anneal_pipeline.training.memory import RowLimit


def test_32_rows_are_learnt_by_heart_at_default_settings_and_answered_to_the_stop(
    kit: ModuleType, tmp_path: Path
) -> None:
    """Pitfall: wrong learning rate for LoRA (that of full fine-tuning)."""
    folder = kit.write_model(tmp_path / "model", hidden=256, spread=0.1)
    rows = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(32))
    # All settings are the defaults, NF4 among them, but the number of passes, and that no row is
    # held out.
    config = PipelineConfig.parse(
        {
            "model": {"uri": "models/tiny"},
            "dataset": {"uri": "rows.jsonl", "split": {"train": 1.0, "validation": 0.0}},
            "training": {"epochs": 130.0},
            "evaluation": {"numGenerations": 0},
            "checkpoint": {"milestones": []},
        }
    )
    observer = kit.RecordingObserver()
    kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    assert observer.steps[-1].loss < 0.1

    adapter = tmp_path / "out" / "artifacts" / "adapter"
    in_4_bit = quantization_settings(config.tuning.quantization, compute=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=in_4_bit)
    model = PeftModel.from_pretrained(base, adapter)
    tokenizer = load_tokenizer(adapter)
    asked = [f"What is {n} plus {n * n}?" for n in range(32)]
    answerer = Answerer(
        model=model,
        tokenizer=tokenizer,
        stop_ids=[tokenizer.eos_token_id],
        limit=RowLimit(rows=32, may_halve=False),
        should_stop=lambda: False,
        on_progress=lambda answered: None,
        on_halved=lambda rows, rank=0: None,
        max_new_tokens=40,
    )
    got = answerer.answer([question_of_prompt(prompt) for prompt in asked])
    assert got is not None
    assert got == [f"It is {n + n * n}." for n in range(32)]
