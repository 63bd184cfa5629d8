"""What a base in 4 bits takes: measured on bitsandbytes' own layers, computed, and planned.

A block of 64 weights shares an fp32 constant, 1/16 byte for each weight beside its 1/2. Double
quantisation holds the constants in 8 bits, with an fp32 constant for 256 of them: 1/64 + 1/4096.
The specification computes with blocks of 1024 (N/2048 and N/8192 bytes); bitsandbytes has 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import GPT2Config, GPT2LMHeadModel

from anneal_pipeline.memory.skeleton import build_skeleton
from anneal_pipeline.model.loading import load_tuned_model

CPU = torch.device("cpu")
COUNT = 1024 * 512
TABLES = {False: 16 * 4, True: 16 * 4 + 256 * 4 + 4}
"""Bytes that every weight has whatever its size: its code, and that of its constants."""


def tensors_of(layer: Linear4bit) -> Iterator[torch.Tensor]:
    """Everything that holds the weight."""
    state = layer.weight.quant_state
    yield layer.weight
    yield from (state.absmax, state.code)
    if state.nested:
        yield from (state.state2.absmax, state.state2.code, state.offset)


def bytes_of(layer: Linear4bit) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(layer))


def quantised(*, double: bool) -> Linear4bit:
    layer = Linear4bit(1024, 512, bias=False, compress_statistics=double, quant_type="nf4")
    torch.manual_seed(0)
    layer.load_state_dict({"weight": torch.randn(512, 1024)})
    return layer.to(CPU)


@pytest.mark.parametrize(
    ("double", "constants", "share_of_fp16"),
    [
        pytest.param(False, COUNT // 16, 0.28125, id="constants in fp32"),
        pytest.param(True, COUNT // 64 + COUNT // 4096, 0.2579, id="constants in 8 bits"),
    ],
)
def test_a_layer_takes_what_is_computed(double: bool, constants: int, share_of_fp16: float) -> None:
    measured = bytes_of(quantised(double=double))
    assert measured == COUNT // 2 + constants + TABLES[double]
    of_weights = measured - TABLES[double]
    assert of_weights / (2 * COUNT) == pytest.approx(share_of_fp16, abs=1e-4)
    assert of_weights / (4 * COUNT) == pytest.approx(share_of_fp16 / 2, abs=1e-4)


def test_double_quantisation_saves_three_quarters_of_the_constants() -> None:
    """Which is 2.3 % of the 16-bit size and 8.3 % of the 4-bit one."""
    plain, double = (bytes_of(quantised(double=on)) - TABLES[on] for on in (False, True))
    assert (plain - double) / (plain - COUNT // 2) == pytest.approx(0.75, abs=0.01)
    assert (plain - double) / (2 * COUNT) == pytest.approx(0.0233, abs=1e-4)
    assert (plain - double) / plain == pytest.approx(0.083, abs=1e-3)


def test_the_reduction_is_within_a_tenth_of_four_times_with_the_default_and_just_not_without() -> (
    None
):
    """Against 16 bits. Of the layers that are quantised: embeddings and head are not."""
    plain, double = (2 * COUNT / bytes_of(quantised(double=on)) for on in (False, True))
    assert double == pytest.approx(3.87, abs=0.01)
    assert double >= 0.9 * 4
    assert plain == pytest.approx(3.555, abs=0.01)
    assert plain < 0.9 * 4


def llama(kit: ModuleType, folder: Path) -> int:
    kit.write_model(folder, hidden=64)
    return 14


def gpt2(kit: ModuleType, folder: Path) -> int:
    """Its projections are no linear layers but transposed convolutions."""
    kit.make_tokenizer().save_pretrained(folder)
    config = GPT2Config(vocab_size=340, n_embd=64, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return 8


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("double", [True, False])
def test_a_model_holds_the_bytes_that_are_planned(
    kit: ModuleType, tmp_path: Path, double: bool, make: Callable[[ModuleType, Path], int]
) -> None:
    num_layers = make(kit, tmp_path)
    config = kit.make_config(
        tuning={
            "method": "qlora",
            "quantization": {"doubleQuant": double, "computeDtype": "float32"},
        }
    )
    tuned = load_tuned_model(config, folder=tmp_path, device=CPU)
    model = tuned.model
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == num_layers
    packed = sum(layer.weight.nbytes for layer in layers)
    state = sum(bytes_of(layer) for layer in layers) - packed
    whole = [p for p in model.parameters() if not p.requires_grad and p.dtype != torch.uint8]
    assert tuned.base_bytes == packed + state + sum(p.nbytes for p in whole)
    numbers = sum(layer.weight.quant_state.shape.numel() for layer in layers)
    numbers += sum(p.numel() for p in whole)
    assert tuned.compression == pytest.approx(2 * numbers / tuned.base_bytes)
    whole += list(model.buffers())
    skeleton = build_skeleton(
        config, folder=tmp_path, compute=torch.float32, in_4_bit=True, on_gpu=False
    )
    assert skeleton.held.quantization_state == state
    stored = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in whole}
    assert skeleton.held.weights == packed + sum(stored.values())


def test_of_a_gpt2_of_medium_size_the_layers_take_a_quarter_and_the_embeddings_stay(
    kit: ModuleType, tmp_path: Path
) -> None:
    """DialoGPT-medium has this shape: 354,823,168 parameters, of which 15 % are embeddings."""
    GPT2Config(n_embd=1024, n_layer=24, n_head=16).save_pretrained(tmp_path)
    config = kit.make_config(tuning={"method": "qlora"})
    held = build_skeleton(
        config, folder=tmp_path, compute=torch.bfloat16, in_4_bit=True, on_gpu=True
    ).held
    packed = 24 * 12 * 1024 * 1024
    whole = 354_823_168 - packed
    assert held.weights == pytest.approx(packed / 2 + 2 * whole, rel=5e-3)
    layers = held.weights + held.quantization_state - 2 * whole
    assert layers / (2 * packed) == pytest.approx(0.258, abs=2e-3)
    together = (held.weights + held.quantization_state) / (2 * 354_823_168)
    assert together == pytest.approx(0.369, abs=2e-3)
