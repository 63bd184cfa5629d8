"""Targets are found in every family, and what a user names is found or refused with a list."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tests.unit.pipeline.families import FAMILIES, MIXTURES, VOCABULARY, make_family
from transformers import DistilBertConfig, DistilBertForMaskedLM, PreTrainedModel

from anneal_pipeline.config.tuning import ALL_ATTENTION, ALL_LINEAR, ALL_MLP, LoraConfig
from anneal_pipeline.errors import UserError
from anneal_pipeline.model.adapters import add_adapters, trainable_parameters
from anneal_pipeline.model.roles import Role, role_of
from anneal_pipeline.model.targets import choose_targets, list_layers


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig.parse({"rank": 4, "dropout": 0.0, **fields})


def kinds_of(model: PreTrainedModel, keyword: str) -> dict[str, int]:
    chosen = choose_targets(model, lora(targetModules=[keyword])).layers
    return dict(Counter(layer.name.rsplit(".", 1)[-1] for layer in chosen))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestEveryFamily:
    def test_attention_and_mlp_are_found_in_both_layers(self, family: str) -> None:
        model = make_family(family)
        _, _, attention, mlp = FAMILIES[family]
        assert kinds_of(model, ALL_ATTENTION) == dict.fromkeys(attention, 2)
        assert kinds_of(model, ALL_MLP) == dict.fromkeys(mlp, 2)
        both = Counter(dict.fromkeys(attention, 2)) + Counter(dict.fromkeys(mlp, 2))
        assert kinds_of(model, ALL_LINEAR) == dict(both)

    def test_dimensions_are_those_of_the_weights(self, family: str) -> None:
        model = make_family(family)
        weights = dict(model.named_parameters())
        for layer in list_layers(model):
            name = layer.name if layer.num_experts else f"{layer.name}.weight"
            *experts, rows, columns = weights[name].shape
            assert sorted((rows, columns)) == sorted((layer.in_features, layer.out_features)), layer
            assert experts == ([layer.num_experts] if layer.num_experts else []), layer

    def test_lora_b_has_a_gradient_everywhere_and_nothing_else_is_trained(
        self, family: str
    ) -> None:
        """Pitfall: adapters that never learn, because a fused path or a freeze goes round them."""
        model = make_family(family)
        ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
        model.eval()
        with torch.no_grad():
            before = model(input_ids=ids).logits
        config = lora()
        tuned = add_adapters(model, config, targets=choose_targets(model, config), seed=3)
        logits = tuned(input_ids=ids).logits
        assert torch.equal(logits.detach(), before)  # B is zero: step 0 is the base itself
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        trained = trainable_parameters(tuned)
        assert all("lora_" in name for name in trained)
        silent = [n for n, p in trained.items() if "lora_B" in n and not p.grad.any()]
        assert silent == []
        expected = sum(
            config.rank * (layer.in_features + layer.out_features) * max(1, layer.num_experts)
            for layer in choose_targets(make_family(family), config).layers
        )
        assert sum(p.numel() for p in trained.values()) == expected


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.0.self_attn.q_proj", Role.ATTENTION),
        ("transformer.h.0.attn.c_proj", Role.ATTENTION),
        ("transformer.h.0.mlp.c_proj", Role.MLP),
        ("gpt_neox.layers.1.attention.dense", Role.ATTENTION),
        ("bert.encoder.layer.1.attention.self.query", Role.ATTENTION),
        ("encoder.block.1.feed_forward.dense_h_to_4h", Role.MLP),
        ("model.layers.0.self_attn.something_new", Role.ATTENTION),
        ("model.layers.0.mixer.in_proj", Role.OTHER),
        ("model.layers.0.mlp.gate", Role.NONE),
        ("model.layers.0.mlp.shared_expert_gate", Role.NONE),
        ("model.layers.0.input_layernorm", Role.NONE),
        ("model.embed_tokens", Role.NONE),
        ("model.decoder.project_in", Role.NONE),
        ("lm_head", Role.NONE),
    ],
)
def test_the_role_follows_from_the_name_and_its_parents(name: str, role: Role) -> None:
    assert role_of(name) == role


def test_distilbert_names_have_roles_too() -> None:
    config = DistilBertConfig(vocab_size=64, dim=32, hidden_dim=48, n_layers=1, n_heads=4)
    model = DistilBertForMaskedLM(config)
    assert kinds_of(model, ALL_LINEAR) == {
        "q_lin": 1, "k_lin": 1, "v_lin": 1, "out_lin": 1, "lin1": 1, "lin2": 1,
    }  # fmt: skip


def test_a_layer_of_one_row_is_no_target() -> None:
    model = make_family("llama")
    model.model.layers[0].self_attn.tiny = torch.nn.Linear(32, 1)
    assert "tiny" not in kinds_of(model, ALL_LINEAR)


def test_the_same_model_gives_the_same_list() -> None:
    first, second = (choose_targets(make_family("phi"), lora()) for _ in range(2))
    assert first == second


class TestNamedTargets:
    @pytest.mark.parametrize(
        ("pattern", "said"),
        [
            ("attn_qkv", "matches no linear layer of the model"),
            ("lm_head", "its output head; .* tuning.lora.modulesToSave"),
            ("embed_tokens", "a Embedding; .* tuning.lora.modulesToSave"),
            ("input_layernorm", "a LlamaRMSNorm"),
        ],
    )
    def test_what_is_no_target_is_refused_with_what_exists(self, pattern: str, said: str) -> None:
        with pytest.raises(UserError, match=rf"{said}.* k_proj \(2\), o_proj \(2\)") as caught:
            choose_targets(make_family("llama"), lora(targetModules=["q_proj", pattern]))
        assert caught.value.reason == "TargetModulesNotFound"

    def test_one_exact_name_or_a_suffix_is_enough(self) -> None:
        exact = "model.layers.1.self_attn.q_proj"
        config = lora(targetModules=[exact, "0.mlp.up_proj"])
        chosen = choose_targets(make_family("llama"), config)
        assert chosen.modules == ["model.layers.0.mlp.up_proj", exact]

    def test_more_rank_than_the_weight_has_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"k_proj rank 32, .* lower tuning.lora.rank to 16"):
            choose_targets(make_family("llama"), lora(rank=32))
        kept = lora(rank=32, rankPattern={"k_proj": 16, "v_proj": 16})
        assert len(choose_targets(make_family("llama"), kept).modules) == 14

    def test_an_alpha_by_module_scales_it_alone(self) -> None:
        pattern = {"q_proj": 2.0, "layers.1.mlp.up_proj": 12.0}
        config, model = lora(alphaPattern=pattern), make_family("llama")
        tuned = add_adapters(model, config, targets=choose_targets(model, config), seed=3)
        layers = tuned.get_base_model().model.layers
        scales = {
            name: [layer.get_submodule(name).scaling["default"] for layer in layers]
            for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
        }
        assert scales == {
            "self_attn.q_proj": [0.5, 0.5],
            "mlp.up_proj": [8.0, 3.0],
            "mlp.down_proj": [8.0, 8.0],
        }

    @pytest.mark.parametrize("field", ["rankPattern", "alphaPattern"])
    def test_a_pattern_that_matches_no_adapter_is_refused_with_what_exists(
        self, field: str
    ) -> None:
        config = lora(targetModules=["q_proj"], **{field: {"k_proj": 2}})
        said = rf"tuning.lora.{field} names k_proj, which matches no module .* q_proj \(2\)"
        with pytest.raises(UserError, match=said) as caught:
            choose_targets(make_family("llama"), config)
        assert caught.value.reason == "TargetModulesNotFound"
        broken = lora(**{field: {"q_proj(": 2}})
        with pytest.raises(UserError, match=rf"{field} names q_proj\(, which is no regular"):
            choose_targets(make_family("llama"), broken)

    def test_orthogonal_beginnings_need_an_even_rank(self) -> None:
        config = lora(initialization="orthogonal", rank=8, rankPattern={"v_proj": 3})
        with pytest.raises(UserError, match=r"v_proj rank 3, but initialization orthogonal needs"):
            choose_targets(make_family("llama"), config)


@pytest.mark.parametrize("name", MIXTURES)
class TestExperts:
    def test_dropout_leaves_found_experts_out_and_says_so(self, name: str) -> None:
        chosen = choose_targets(make_family(name), lora(dropout=0.05))
        assert chosen.parameters == []
        assert {layer.role for layer in chosen.left_out} == {Role.EXPERT}
        assert len(chosen.left_out) == 4

    @pytest.mark.parametrize(
        "option", [{"dropout": 0.05}, {"useDora": True}, {"initialization": "pissa"}]
    )
    def test_named_experts_that_cannot_be_had_are_refused(
        self, name: str, option: dict[str, Any]
    ) -> None:
        with pytest.raises(UserError, match="a stack of experts") as caught:
            choose_targets(make_family(name), lora(targetModules=["gate_up_proj"], **option))
        assert caught.value.reason == "AdapterImpossible"
