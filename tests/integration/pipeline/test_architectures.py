"""Whole runs of models that are not built as Llama is: stacked experts, Conv1D, learned positions.

Trained, stopped, resumed, exported and loaded by PEFT as any user would.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.unit.pipeline.families import FAMILIES
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig, PretrainedConfig

from anneal_pipeline import run as run_module
from anneal_pipeline.export.adapter import verify_adapter

SHAPES: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(
        **{**FAMILIES["mixtral"][1], "vocab_size": 340, "max_position_embeddings": 128}
    ),
    "gpt2": GPT2Config(**{**FAMILIES["gpt2"][1], "vocab_size": 340, "n_positions": 128}),
}
CASES = [
    pytest.param("mixtral", "lora", "mlp.experts.", id="experts"),
    pytest.param("mixtral", "qlora", "mlp.experts.", id="experts beside 4-bit attention"),
    pytest.param("gpt2", "lora", "attn.c_attn.", id="Conv1D"),
    pytest.param("gpt2", "qlora", "attn.c_attn.", id="Conv1D in 4 bits"),
]


def adapter_of(root: Path) -> Path:
    return root / "out" / "artifacts" / "adapter"


@pytest.mark.parametrize(("family", "method", "part"), CASES)
def test_a_run_stopped_on_the_way_exports_what_one_left_alone_trained(
    kit: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    method: str,
    part: str,
) -> None:
    trained: list[tuple[torch.Tensor, torch.Tensor]] = []

    def listening(folder: Path, *, model: Any, ids: torch.Tensor) -> None:
        model.eval()
        with torch.no_grad():
            trained.append((ids, model(input_ids=ids).logits))
        verify_adapter(folder, model=model, ids=ids)

    monkeypatch.setattr(run_module, "verify_adapter", listening)
    base = kit.save_model(tmp_path / "base", SHAPES[family])
    rows = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(20))
    config = kit.make_config(
        tuning={"method": method, "lora": {"rank": 4, "dropout": 0.0}},
        training={"maxSteps": 4},
        evaluation={"numGenerations": 2, "everySteps": 2},
        checkpoint={"everySteps": 1},
    )
    options = {"model_dir": base, "rows": rows}
    whole = kit.run(tmp_path / "whole", config, **options)
    assert whole.tuned_metrics["loss"] < whole.base_metrics["loss"]
    parts = tmp_path / "parts"
    first = kit.RecordingObserver(stop_at=2)
    assert kit.run(parts, config, observer=first, **options).interrupted
    resumed = kit.run(parts, config, attempt=2, **options)
    assert resumed.artefact_digest == whole.artefact_digest

    weights = load_file(adapter_of(parts) / "adapter_model.safetensors")
    learnt = [name for name, tensor in weights.items() if "lora_B" in name and tensor.any()]
    assert [name for name in learnt if part in name], sorted(weights)
    assert len(learnt) == sum("lora_B" in name for name in weights)
    if method == "lora":
        model = AutoModelForCausalLM.from_pretrained(base)
        loaded = PeftModel.from_pretrained(model, adapter_of(parts)).eval()
        ids, want = trained[-1]
        with torch.no_grad():
            torch.testing.assert_close(loaded(input_ids=ids).logits, want, rtol=1e-5, atol=1e-5)
