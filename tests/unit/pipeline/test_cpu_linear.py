"""Products through oneDNN are those of PyTorch, forward and backward."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit

from anneal_pipeline.memory.live_set import LiveSet
from anneal_pipeline.model.cpu_linear import (
    CpuLinear,
    frozen_product,
    is_faster_for,
    speed_up_frozen,
)
from anneal_pipeline.model.cpu_linear_4bit import CpuLinear4bit, speed_up


def layer_of(*, bias: bool, compute: torch.dtype = torch.float32) -> Linear4bit:
    torch.manual_seed(0)
    layer = Linear4bit(64, 48, bias=bias, compute_dtype=compute, quant_type="nf4")
    weight = torch.randn(48, 64)
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4")
    return layer.to("cpu").requires_grad_(False)


@pytest.mark.parametrize("shape", [(7, 64), (2, 5, 64), (0, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_four_bit_layer_computes_what_it_did(shape: tuple[int, ...], bias: bool) -> None:
    layer = layer_of(bias=bias)
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    x = torch.randn(shape, requires_grad=True)
    downstream = torch.randn(*shape[:-1], 48)
    want = torch.nn.functional.linear(x, weight, layer.bias)
    (want_grad,) = torch.autograd.grad(want, x, downstream)
    speed_up(layer)
    assert type(layer) is CpuLinear4bit
    got = layer(x)
    (got_grad,) = torch.autograd.grad(got, x, downstream)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_grad, want_grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_layer_computes_what_it_did(bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48, bias=bias).requires_grad_(False)
    x = torch.randn(2, 5, 64, requires_grad=True)
    want = layer(x)
    (want_grad,) = torch.autograd.grad(want.sum(), x)
    assert speed_up_frozen(torch.nn.ModuleList([layer])) == 1
    assert type(layer) is CpuLinear
    got = layer(x)
    (got_grad,) = torch.autograd.grad(got.sum(), x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_grad, want_grad, rtol=1e-5, atol=1e-5)


def test_layers_that_are_trained_or_hold_another_type_stay_pytorchs() -> None:
    trained = torch.nn.Linear(4, 4)
    half = torch.nn.Linear(4, 4, dtype=torch.bfloat16).requires_grad_(False)
    assert speed_up_frozen(torch.nn.ModuleList([trained, half])) == 0


def test_a_layer_trained_after_all_gets_its_gradient() -> None:
    layer = torch.nn.Linear(8, 4).requires_grad_(False)
    speed_up_frozen(torch.nn.ModuleList([layer]))
    layer.requires_grad_(True)
    layer(torch.ones(3, 8)).sum().backward()
    torch.testing.assert_close(layer.weight.grad, torch.full((4, 8), 3.0))


def test_other_compute_types_stay_with_bitsandbytes() -> None:
    layer = layer_of(bias=False, compute=torch.bfloat16)
    speed_up(layer)
    assert type(layer) is Linear4bit


def test_a_frozen_weight_of_any_layout_is_multiplied() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 48).t()
    x = torch.randn(5, 64, requires_grad=True)
    got = frozen_product(x, lambda: weight)
    torch.testing.assert_close(got, x @ weight.t(), rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(got.sum(), x)
    torch.testing.assert_close(grad, weight.sum(0).expand(5, 64), rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_trained_is_left_to_pytorch() -> None:
    weight = torch.randn(4, 4)
    assert is_faster_for(weight)
    assert not is_faster_for(weight.requires_grad_())
    assert not is_faster_for(torch.randn(4, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize("is_trained_through", [False, True])
def test_the_unpacked_weight_is_gone_after_each_product(is_trained_through: bool) -> None:
    """Also where a backward pass is to come: what is kept for it are the outputs alone."""
    layer = layer_of(bias=False)
    speed_up(layer)
    x = torch.randn(7, 64, requires_grad=is_trained_through)

    def peak_over(num_products: int) -> int:
        live = LiveSet(vocabulary=0, block_bytes=1)
        with live:
            kept = [layer(x) for _ in range(num_products)]
        assert len(kept) == num_products
        return live.peak

    one, six = peak_over(1), peak_over(6)
    assert one > 48 * 64 * 4, "the weight is unpacked at all"
    assert six - one == 5 * (7 * 48 * 4)
