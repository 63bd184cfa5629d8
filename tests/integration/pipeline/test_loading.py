"""A model that is not whole, or too large to be held, ends a run in words for its owner."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel

from anneal_pipeline.errors import UserError
from anneal_pipeline.model import loading
from anneal_pipeline.model.loading import load_tuned_model

CPU = torch.device("cpu")
UP = "model.layers.1.mlp.up_proj.weight"
QUICK = {"numGenerations": 0, "baseline": False}


@pytest.fixture
def model(model_dir: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


@pytest.fixture
def rows(kit: ModuleType, tmp_path: Path) -> Path:
    path: Path = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(20))
    return path


def weights_of(model: Path) -> Path:
    return model / "model.safetensors"


def cut(model: Path) -> None:
    weights_of(model).write_bytes(weights_of(model).read_bytes()[:-100])


def pointer(model: Path) -> None:
    weights_of(model).write_text("version https://git-lfs.github.com/spec/v1\nsize 129\n")


def in_shards(model: Path) -> None:
    """As save_pretrained writes a large model."""
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model, max_shard_size="20KB")
    weights_of(model).unlink()
    assert len(list(model.glob("*.safetensors"))) > 2


def without_a_shard(model: Path) -> None:
    in_shards(model)
    sorted(model.glob("*.safetensors"))[1].unlink()


def with_a_cut_shard(model: Path) -> None:
    in_shards(model)
    shard = sorted(model.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])


def with_a_torn_index(model: Path) -> None:
    in_shards(model)
    (model / "model.safetensors.index.json").write_text('{"weight_map": ')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(cut, r"damaged weight file, model.safetensors of [\d,]+ bytes", id="cut off"),
        pytest.param(pointer, r"damaged weight file", id="a pointer instead of the file"),
        pytest.param(
            without_a_shard, r"lacks model-00002-of-\d+.safetensors of the \d+", id="no shard"
        ),
        pytest.param(
            with_a_cut_shard, r"damaged weight file, model-00002", id="a shard is cut off"
        ),
        pytest.param(with_a_torn_index, r"index.json that cannot be read", id="torn index"),
    ],
)
def test_files_that_are_not_whole_are_named_before_the_data_are_prepared(
    kit: ModuleType,
    model: Path,
    rows: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    said: str,
) -> None:
    damage(model)
    observer = kit.RecordingObserver()
    with pytest.raises(UserError, match=f"{said}.*upload the model's own files again") as caught:
        kit.run(tmp_path, kit.make_config(), model_dir=model, rows=rows, observer=observer)
    assert caught.value.reason == "ModelUnsupported"
    assert observer.stages == []


def test_shards_that_are_whole_are_loaded(kit: ModuleType, model: Path) -> None:
    want = load_tuned_model(kit.make_config(), folder=model, device=CPU).model.state_dict()
    in_shards(model)
    got = load_tuned_model(kit.make_config(), folder=model, device=CPU).model.state_dict()
    assert [name for name in want if not torch.equal(got[name], want[name])] == []


def without_a_weight(model: Path) -> None:
    stored = load_file(weights_of(model))
    del stored[UP]
    save_file(stored, weights_of(model), metadata={"format": "pt"})


def of_another_size(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(without_a_weight, f"no numbers for {UP}", id="a weight is missing"),
        pytest.param(of_another_size, r"of shape \[.*64.*\] .* expects \[.*48", id="another size"),
    ],
)
def test_no_weight_is_left_to_chance(
    kit: ModuleType, model: Path, method: str, damage: Callable[[Path], None], said: str
) -> None:
    damage(model)
    config = kit.make_config(tuning={"method": method})
    with pytest.raises(UserError, match=f"{said}.*upload the model's own files") as caught:
        load_tuned_model(config, folder=model, device=CPU)
    assert caught.value.reason == "ModelUnsupported"


def test_an_architecture_that_is_none_says_what_would_be_one(kit: ModuleType, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "lama"}))
    with pytest.raises(UserError, match=r"causal language model.*lama.*name such a model"):
        load_tuned_model(kit.make_config(), folder=model, device=CPU)


def test_a_model_that_cannot_recompute_says_what_to_set(kit: ModuleType, model: Path) -> None:
    config = OpenAIGPTConfig(vocab_size=kit.VOCABULARY, n_positions=64, n_embd=32, n_head=2)
    config.n_layer = 1
    OpenAIGPTLMHeadModel(config).save_pretrained(model)
    job = kit.make_config(training={"gradientCheckpointing": True})
    with pytest.raises(UserError, match=r"openai-gpt.*gradientCheckpointing.*to false"):
        load_tuned_model(job, folder=model, device=CPU)


@pytest.mark.parametrize(
    ("tuning", "advice"),
    [
        ({"method": "lora"}, "set tuning.method to qlora"),
        ({"method": "qlora"}, "; take a smaller model"),
    ],
)
def test_memory_that_runs_out_while_loading_is_answered_by_its_own_remedy(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tuning: dict[str, Any],
    advice: str,
) -> None:
    class Hungry:
        """Asks the real allocator for more than there is."""

        @staticmethod
        def from_pretrained(*_: Any, **options: Any) -> Any:
            return torch.empty(1 << 50)

    monkeypatch.setattr(loading, "AutoModelForCausalLM", Hungry)
    config = kit.make_config(tuning=tuning, evaluation=QUICK)
    with pytest.raises(UserError, match="while the model at models/tiny was being") as caught:
        kit.run(tmp_path, config, model_dir=model_dir, rows=rows)
    assert caught.value.reason == "DoesNotFit"
    assert advice in caught.value.message
    assert "microBatchSize" not in caught.value.message
