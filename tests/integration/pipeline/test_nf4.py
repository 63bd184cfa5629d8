"""4-bit layers on the CPU train: also after they have been evaluated.

bitsandbytes repacks a Linear4bit for inference when it first runs in eval mode without gradients on
a CPU with AVX512-BF16, and its inputs get no gradient from then on; the loader has to prevent that.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from anneal_pipeline.errors import UserError
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.loading import TunedModel, load_tuned_model
from anneal_pipeline.training.batches import Batch
from anneal_pipeline.training.loss import LogitsPath, sum_of_losses

CPU = torch.device("cpu")
KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def tuned(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> TunedModel:
    folder = kit.write_model(tmp_path_factory.mktemp("wide"), hidden=64)
    config = kit.make_config(tuning={"method": "qlora"}, training={"gradientCheckpointing": False})
    loaded = load_tuned_model(config, folder=folder, device=CPU)
    ids = torch.arange(20).unsqueeze(0)
    loaded.model.eval()
    with torch.no_grad():
        loaded.model(input_ids=ids)
    loaded.model.train()
    return loaded


def layer_of(tuned: TunedModel, kind: str) -> Any:
    return next(
        module
        for name, module in tuned.model.named_modules()
        if isinstance(module, Linear4bit) and f".{kind}." in f"{name}."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_after_an_evaluation_the_input_gradient_is_that_of_the_weight(
    tuned: TunedModel, kind: str
) -> None:
    layer = layer_of(tuned, kind)
    state = layer.weight.quant_state
    assert state.nested
    assert state.quant_type == "nf4"
    weight = dequantize_4bit(layer.weight.data, state).float()
    torch.manual_seed(0)
    given = torch.randn(3, layer.in_features, requires_grad=True)
    downstream = torch.randn(3, layer.out_features)
    layer(given).backward(downstream)
    torch.testing.assert_close(given.grad, downstream @ weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "within"),
    [
        pytest.param({"type": "nf4", "doubleQuant": False}, 0.1, id="nf4, constants whole"),
        pytest.param({"type": "fp4"}, 0.13, id="fp4"),
        pytest.param({"type": "fp4", "doubleQuant": False}, 0.13, id="fp4, constants whole"),
    ],
)
def test_other_forms_hold_the_base_as_asked_and_train(
    kit: ModuleType, tmp_path: Path, form: dict[str, Any], within: float
) -> None:
    """`within`: the mean error of a weight, of its standard deviation."""
    folder = kit.write_model(tmp_path, hidden=64)
    config = kit.make_config(
        tuning={"method": "qlora", "lora": {"rank": 4, "dropout": 0.0}, "quantization": form}
    )
    loaded = load_tuned_model(config, folder=folder, device=CPU)
    whole = LlamaForCausalLM.from_pretrained(folder).model.layers[0].mlp.up_proj.weight.detach()
    layer = layer_of(loaded, "up_proj")
    state = layer.weight.quant_state
    assert (state.quant_type, state.nested) == (form["type"], form.get("doubleQuant", True))
    weight = dequantize_4bit(layer.weight.data, state).float()
    assert 0 < float((weight - whole).abs().mean() / whole.std()) < within
    ids = torch.randint(4, 300, (2, 16), generator=torch.Generator().manual_seed(1))
    batch = Batch(ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    loaded.model.train()
    sum_of_losses(LogitsPath(loaded.model)(batch)).backward()
    gradients = {n: p.grad for n, p in trainable_parameters(loaded.model).items() if "lora_B" in n}
    assert [n for n, grad in gradients.items() if grad is None or not grad.any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_four_bit_layer_keeps_its_layout(tuned: TunedModel, kind: str) -> None:
    layer = layer_of(tuned, kind)
    assert layer.support_avx512bf16_for_cpu is False
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


def test_the_head_stays_whole_and_only_fp32_adapters_train(tuned: TunedModel) -> None:
    base = tuned.model.get_base_model()
    assert base.get_output_embeddings().weight.dtype == torch.float32
    names = trainable_parameters(tuned.model)
    assert all("lora_" in name for name in names)
    assert {p.dtype for p in names.values()} == {torch.float32}
    assert tuned.num_trainable == sum(p.numel() for p in names.values())
    assert tuned.num_parameters > 2 * 7 * 64 * 32


def test_every_adapter_matrix_learns(tuned: TunedModel) -> None:
    """Pitfall: a fused path leaves adapters without a gradient.

    With B at zero only B gets a gradient in the first step; A follows in the second.
    """
    path = LogitsPath(tuned.model)
    ids = torch.randint(4, 300, (2, 16), generator=torch.Generator().manual_seed(1))
    batch = Batch(ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    parameters = trainable_parameters(tuned.model)
    sgd = torch.optim.SGD(parameters.values(), lr=0.1)
    for _ in range(2):
        sgd.zero_grad()
        sum_of_losses(path(batch)).backward()
        sgd.step()
    silent = [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("key", ["attn_qkv", "q_prij", "0", "("])
def test_a_rank_for_no_adapted_module_is_an_error(
    kit: ModuleType, model_dir: Path, key: str
) -> None:
    config = kit.make_config(
        tuning={"lora": {"targetModules": ["q_proj", "v_proj"], "rankPattern": {key: 2}}}
    )
    with pytest.raises(UserError, match=r"rankPattern names") as caught:
        load_tuned_model(config, folder=model_dir, device=CPU)
    assert caught.value.reason == "TargetModulesNotFound"


def test_a_rank_pattern_gives_its_modules_their_rank(kit: ModuleType, model_dir: Path) -> None:
    lora = {"rank": 4, "targetModules": ["q_proj", "v_proj"], "rankPattern": {"v_proj": 2}}
    loaded = load_tuned_model(kit.make_config(tuning={"lora": lora}), folder=model_dir, device=CPU)
    ranks = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1]: len(p)
        for name, p in trainable_parameters(loaded.model).items()
        if "lora_A" in name
    }
    assert ranks == {"q_proj": 4, "v_proj": 2}


def test_gradient_checkpointing_changes_no_gradient(kit: ModuleType, model_dir: Path) -> None:
    """Pitfall: checkpointing with frozen embeddings: no gradient to the adapters.

    With it a layer runs once more, in the backward pass.
    """
    ids = torch.randint(4, 300, (2, 16), generator=torch.Generator().manual_seed(1))
    batch = Batch(ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    grads, calls = [], []
    for checkpointing in (False, True):
        config = kit.make_config(
            tuning={"method": "qlora", "lora": {"rank": 4, "dropout": 0.0}},
            training={"gradientCheckpointing": checkpointing},
        )
        tuned = load_tuned_model(config, folder=model_dir, device=CPU)
        tuned.model.train()
        path = LogitsPath(tuned.model)  # tries the model, so it is made before calls are counted
        seen: list[torch.Tensor] = []
        layer_of(tuned, "q_proj").register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append(given[0])
        )
        sum_of_losses(path(batch)).backward()
        calls.append(len(seen))
        grads.append({n: p.grad for n, p in trainable_parameters(tuned.model).items()})
    for name, want in grads[0].items():
        assert torch.equal(grads[1][name], want), name
    assert calls == [1, 2]


def test_experts_that_bitsandbytes_cannot_hold_in_4_bits_are_told(
    kit: ModuleType, tmp_path: Path
) -> None:
    kit.make_tokenizer().save_pretrained(tmp_path)
    config = MixtralConfig(
        vocab_size=340,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    lora = {"rank": 4, "dropout": 0.0, "targetModules": ["q_proj", "v_proj"]}
    job = kit.make_config(tuning={"method": "qlora", "lora": lora})
    loaded = load_tuned_model(job, folder=tmp_path, device=CPU)
    experts = loaded.model.get_base_model().model.layers[0].mlp.experts
    assert {p.dtype for p in experts.parameters()} == {torch.float32}
    count = sum(p.numel() for p in experts.parameters())
    assert f"{count:,} of {loaded.num_parameters:,} parameters" in loaded.warnings[0]
