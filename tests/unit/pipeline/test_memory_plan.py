"""What a run needs is known from its files: parts that can be counted are exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.pipeline.families import FAMILIES, make_family

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.tuning import LoraConfig
from anneal_pipeline.errors import UserError
from anneal_pipeline.memory import plan as plan_module
from anneal_pipeline.memory.fit import MARGIN, choose_fit, setting_of
from anneal_pipeline.memory.plan import Setting, find_targets, plan_memory
from anneal_pipeline.memory.room import room_on_cpu
from anneal_pipeline.memory.shape import ModelShape, ShapeUnknownError, read_shape, shape_of
from anneal_pipeline.memory.weight_files import StoredTensor, read_tensors
from anneal_pipeline.model.targets import choose_targets
from anneal_pipeline.training.loss import PIECE_TOKENS

GIB = 1 << 30


def seven_billion() -> ModelShape:
    """The weights of Llama-2-7B by name and shape."""
    tensors = {
        "model.embed_tokens.weight": StoredTensor("BF16", (32000, 4096)),
        "lm_head.weight": StoredTensor("BF16", (32000, 4096)),
    }
    sizes = {f"self_attn.{kind}_proj": (4096, 4096) for kind in "qkvo"}
    sizes |= {"mlp.gate_proj": (11008, 4096), "mlp.up_proj": (11008, 4096)}
    sizes |= {"mlp.down_proj": (4096, 11008)}
    for layer in range(32):
        for name, size in sizes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = StoredTensor("BF16", size)
    config = {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    }
    return shape_of(config, tensors)


def config_of(**training: Any) -> PipelineConfig:
    sections = {"model": {"uri": "m"}, "dataset": {"uri": "d"}, "training": training}
    return PipelineConfig.parse(sections)


def setting(**changed: Any) -> Setting:
    plain = setting_of(config_of(), in_4_bit=True, compute="bfloat16", on_gpu=True, length=2048)
    return replace(plain, **changed)


class TestShape:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_files_tell_what_the_loaded_model_does(self, family: str, tmp_path: Path) -> None:
        model = make_family(family)
        model.save_pretrained(tmp_path)
        shape = read_shape(tmp_path)
        total = sum(parameter.numel() for parameter in model.parameters())
        assert shape.num_parameters == total
        lora = LoraConfig.parse({"rank": 4})
        want = choose_targets(model, lora).layers
        got = find_targets(shape, lora)
        assert sum(la.num_adapter_parameters(4) for la in got) == sum(
            la.num_adapter_parameters(4) for la in want
        )

    def test_dimensions_without_a_name_are_no_guess(self) -> None:
        with pytest.raises(ShapeUnknownError, match="hidden_size"):
            shape_of({"width": 3}, {})

    def test_a_broken_header_is_the_users(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(b"not a model")
        with pytest.raises(UserError, match=r"model.safetensors of the model is no safetensors"):
            read_tensors(tmp_path)


class TestPlan:
    def test_seven_billion_in_4_bit_is_that_of_the_specification(self) -> None:
        """QM5: about 4.5 GB of weights, under 0.7 GB of adapters with their optimizer, in 8 GB."""
        plan = plan_memory(seven_billion(), setting())
        held = plan.weights + plan.quantization_state
        assert 3.5e9 < held < 4.5e9
        assert plan.adapters + plan.gradients + plan.optimizer < 0.7e9
        assert plan.total < 8 * GIB

    def test_double_quantisation_saves_0_37_bit_per_parameter(self) -> None:
        shape = seven_billion()
        num = sum(layer.num_parameters for layer in shape.layers)
        once, twice = (
            plan_memory(shape, setting(double_quant=on)).quantization_state for on in (False, True)
        )
        assert 8 * (once - twice) / num == pytest.approx(0.373, abs=0.01)

    def test_adapters_are_counted_with_gradients_and_both_moments(self) -> None:
        shape = seven_billion()
        plan = plan_memory(shape, setting())
        rank, layers = 16, 32
        per_layer = 4 * 2 * 4096 + 3 * (4096 + 11008)
        assert plan.adapters == 4 * rank * layers * per_layer
        assert plan.gradients == plan.adapters
        assert plan.optimizer == 2 * plan.adapters

    @pytest.mark.parametrize(
        ("change", "grows"),
        [
            ({"micro_batch_size": 2}, "activations"),
            ({"length": 4096}, "activations"),
            ({"checkpointing": False}, "activations"),
            ({"in_4_bit": False}, "weights"),
            ({"lora": LoraConfig.parse({"rank": 64})}, "adapters"),
            ({"compute": "float32"}, "activations"),
        ],
    )
    def test_each_setting_moves_its_part(self, change: dict[str, Any], grows: str) -> None:
        shape = seven_billion()
        before, after = (plan_memory(shape, s).parts() for s in (setting(), setting(**change)))
        assert after[grows] > before[grows]

    def test_the_pieces_of_logits_are_those_of_the_loss(self) -> None:
        assert plan_module.PIECE_TOKENS == PIECE_TOKENS


class TestFit:
    def test_the_largest_that_fits_with_the_margin_is_taken(self) -> None:
        shape = seven_billion()
        totals = {
            size: plan_memory(shape, setting(micro_batch_size=size)).total for size in (1, 2, 4, 8)
        }
        for size in (1, 2, 4, 8):
            room = int(totals[size] * (1 + MARGIN)) + 1
            fit = choose_fit(shape, setting(), config_of(), room=room)
            assert fit.micro_batch_size == size

    def test_without_a_limit_the_usual_size_is_taken(self) -> None:
        assert choose_fit(seven_billion(), setting(), config_of(), room=None).micro_batch_size == 8

    def test_a_size_that_was_asked_for_is_kept_though_it_is_close(self) -> None:
        plan = plan_memory(seven_billion(), setting(micro_batch_size=4))
        config = config_of(microBatchSize=4)
        fit = choose_fit(seven_billion(), setting(), config, room=int(plan.total * 0.9))
        assert fit.micro_batch_size == 4

    @pytest.mark.parametrize(
        ("room", "changed", "training", "said"),
        [
            (6 * GIB, {}, {"microBatchSize": 16}, "set training.microBatchSize to "),
            (
                6 * GIB,
                {"checkpointing": False},
                {},
                "set training.gradientCheckpointing to true",
            ),
            (8 * GIB, {"in_4_bit": False}, {}, "tuning.method to qlora, which needs about "),
            (5 * GIB, {"length": 16384}, {}, "training.sequenceLength to "),
            (1 * GIB, {}, {}, "a smaller model or a machine with more memory"),
        ],
    )
    def test_what_cannot_fit_is_refused_with_the_nearest_that_does(
        self, room: int, changed: dict[str, Any], training: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(UserError, match=said) as caught:
            choose_fit(seven_billion(), setting(**changed), config_of(**training), room=room)
        assert caught.value.reason == "DoesNotFit"
        assert f"{room / GIB:.2f} GiB are free" in caught.value.message


class TestRoom:
    def write(self, root: Path, *, limit: str, available_kib: int) -> int | None:
        (root / "cgroup").mkdir()
        (root / "cgroup" / "memory.max").write_text(f"{limit}\n")
        (root / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {available_kib} kB\n")
        return room_on_cpu(cgroup_root=root / "cgroup", proc=root)

    def test_the_container_or_the_machine_is_the_limit(self, tmp_path: Path) -> None:
        for name, limit, want in [
            ("max", "max", 4096 * 1024),
            ("tight", "1048576", 1048576),
            ("loose", "99999999999", 4096 * 1024),
        ]:
            (tmp_path / name).mkdir()
            assert self.write(tmp_path / name, limit=limit, available_kib=4096) == want

    def test_unknown_is_none(self, tmp_path: Path) -> None:
        assert room_on_cpu(cgroup_root=tmp_path, proc=tmp_path) is None
