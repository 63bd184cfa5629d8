"""Every option of the adapters trains, survives a checkpoint and loads from what was exported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from anneal_pipeline.errors import UserError
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.loading import load_tuned_model

CPU = torch.device("cpu")
EMBEDDINGS = {"modulesToSave": ["embed_tokens"]}


@pytest.fixture(scope="module")
def wide_model(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for 4-bit blocks; its embeddings and head are one weight."""
    folder: Path = kit.write_model(tmp_path_factory.mktemp("wide"), hidden=64)
    return folder


@pytest.fixture(scope="module")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(16))
    return path


def config_of(kit: ModuleType, method: str, lora: dict[str, Any]) -> Any:
    return kit.make_config(
        tuning={"method": method, "lora": {"rank": 4, "alpha": 8.0, **lora}},
        training={"maxSteps": 4},
        checkpoint={"everySteps": 2},
        evaluation={"baseline": False, "numGenerations": 0},
    )


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("lora", [{"useDora": True}, EMBEDDINGS], ids=["dora", "embeddings"])
def test_optimiser_order_holds_over_a_resume_and_the_export_loads(
    kit: ModuleType, tmp_path: Path, wide_model: Path, rows: Path, method: str, lora: dict[str, Any]
) -> None:
    """Pitfall: optimiser param-group order changes with modules_to_save."""
    config = config_of(kit, method, lora)
    whole = kit.run(tmp_path / "whole", config, model_dir=wide_model, rows=rows)
    observer = kit.RecordingObserver(stop_at=2)
    cut = kit.run(tmp_path / "cut", config, model_dir=wide_model, rows=rows, observer=observer)
    assert cut.interrupted
    resumed = kit.run(tmp_path / "cut", config, model_dir=wide_model, rows=rows, attempt=2)
    name = "adapter_model.safetensors"
    want, got = load_file(whole.adapter_dir / name), load_file(resumed.adapter_dir / name)
    assert want.keys() == got.keys()
    assert [key for key in want if not torch.equal(want[key], got[key])] == []
    has_magnitudes = any("magnitude" in key for key in want)
    assert has_magnitudes == ("useDora" in lora)


def test_tied_embeddings_are_one_weight_after_the_export_is_loaded(
    kit: ModuleType, tmp_path: Path, wide_model: Path, rows: Path
) -> None:
    """Pitfall: tied embeddings cloned or lost; new tokens dropped."""
    config = config_of(kit, "lora", EMBEDDINGS)
    done = kit.run(tmp_path, config, model_dir=wide_model, rows=rows)
    base = AutoModelForCausalLM.from_pretrained(wide_model)
    before = base.get_input_embeddings().weight.detach().clone()
    loaded = PeftModel.from_pretrained(base, done.adapter_dir)
    inner = loaded.get_base_model()
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    assert embedding.weight.data_ptr() == head.weight.data_ptr()
    assert not torch.equal(embedding.weight, before)
    with loaded.disable_adapter():
        assert torch.equal(inner.get_input_embeddings().original_module.weight, before)


def test_adapters_are_never_quantised(kit: ModuleType, wide_model: Path) -> None:
    config = config_of(kit, "qlora", {"useDora": True, **EMBEDDINGS})
    tuned = load_tuned_model(config, folder=wide_model, device=CPU)
    kinds = {
        (type(parameter).__name__, parameter.dtype)
        for parameter in trainable_parameters(tuned.model).values()
    }
    assert kinds == {("Parameter", torch.float32)}
    four_bit = [p for p in tuned.model.parameters() if hasattr(p, "quant_state")]
    assert len(four_bit) == 14
    assert {p.requires_grad for p in four_bit} == {False}


@pytest.mark.parametrize(
    ("method", "lora", "said"),
    [
        ("lora", {"modulesToSave": ["embeddings"]}, r"matches no module .* embed_tokens \(1\)"),
        ("lora", {"modulesToSave": ["q_proj"]}, "gets an adapter already"),
        (
            "qlora",
            {"modulesToSave": ["q_proj"], "targetModules": ["v_proj"]},
            "held in 4 bits and cannot be trained in full",
        ),
    ],
)
def test_modules_that_cannot_be_trained_in_full_are_refused(
    kit: ModuleType, wide_model: Path, method: str, lora: dict[str, Any], said: str
) -> None:
    config = config_of(kit, method, lora)
    with pytest.raises(UserError, match=rf"tuning.lora.modulesToSave names .*{said}"):
        load_tuned_model(config, folder=wide_model, device=CPU)


WITHOUT_BITSANDBYTES = """
import sys
sys.modules["bitsandbytes"] = None
import subprocess
import sys
from pathlib import Path
from tests.unit.pipeline import kit
model, rows, root = (Path(part) for part in sys.argv[1:])
tuning = {"fallback": "allow", "method": "qlora", "lora": {"rank": 4}}
observer = kit.RecordingObserver()
config = kit.make_config(tuning=tuning, training={"maxSteps": 1})
kit.run(root, config, model_dir=model, rows=rows, observer=observer)
print([message for _, message in observer.events])
"""


def test_without_bitsandbytes_fallback_trains_plain_lora_and_says_so(
    tmp_path: Path, wide_model: Path, rows: Path
) -> None:
    repository = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BITSANDBYTES, str(wide_model), str(rows), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=repository,
    )
    assert done.returncode == 0, done.stderr
    assert "bitsandbytes is not installed. Going on as plain LoRA" in done.stdout
