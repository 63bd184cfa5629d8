"""Products with frozen fp32 weights on the CPU, through oneDNN.

PyTorch takes MKL for fp32 products, which on processors of other makers than Intel stays below the
widest instructions: on an AMD EPYC with AVX-512, MKL 2024.2 gives 88 GFLOP/s per core and oneDNN
3.13 gives 178 (528 x 576 x 1536, torch 2.x). Both compute in fp32 and differ by rounding only.
Frozen weights need no gradient, so that one function serves the layers of a plain base, the 4-bit
ones, which are unpacked again for the backward pass, and the output head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

Weight = Callable[[], torch.Tensor]

HAS_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class _FrozenProduct(torch.autograd.Function):
    """x W^T, with a weight that is had anew in the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        ctx.weight = weight
        return _product(x, weight())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _product(grads[0], ctx.weight().t()), None


def frozen_product(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """Multiply rows of `x` by a frozen (out, in) weight."""
    if x.requires_grad and torch.is_grad_enabled():
        product: torch.Tensor = _FrozenProduct.apply(x, weight)
        return product
    return _product(x, weight())


class CpuLinear(torch.nn.Linear):
    """A frozen layer of fp32 on the CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32 or not is_faster_for(self.weight):
            return super().forward(x)
        product = frozen_product(x, lambda: self.weight)
        return product if self.bias is None else product + self.bias


def speed_up_frozen(model: torch.nn.Module) -> int:
    """Let the frozen layers that gain by it use these products; return how many there are."""
    layers = [m for m in model.modules() if type(m) is torch.nn.Linear and is_faster_for(m.weight)]
    for layer in layers:
        layer.__class__ = CpuLinear
    return len(layers)


def is_faster_for(weight: torch.Tensor) -> bool:
    """True where these products take the place of PyTorch's own."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not weight.requires_grad
        and HAS_ONEDNN
    )


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if not x.numel():
        return functional.linear(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return out.view(*x.shape[:-1], weight.shape[0])
