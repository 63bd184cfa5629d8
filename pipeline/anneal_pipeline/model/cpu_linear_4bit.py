"""4-bit layers that compute in fp32 on the CPU, through oneDNN."""

from __future__ import annotations

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from bitsandbytes.nn.modules import fix_4bit_weight_quant_state_from_module

from anneal_pipeline.model.cpu_linear import HAS_ONEDNN, frozen_product


class CpuLinear4bit(Linear4bit):  # type: ignore[misc]  # bitsandbytes is untyped
    """A frozen 4-bit layer that computes in fp32 on the CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fix_4bit_weight_quant_state_from_module(self)
        product = frozen_product(x.float(), self.unpacked).to(x.dtype)
        return product if self.bias is None else product + self.bias.to(x.dtype)

    def unpacked(self) -> torch.Tensor:
        """The weight in fp32, as (out, in)."""
        dense: torch.Tensor = dequantize_4bit(self.weight.data.view(-1, 1), self.weight.quant_state)
        return dense.float()


def speed_up(layer: Linear4bit) -> None:
    """Let a 4-bit layer of fp32 compute on the CPU use the faster products."""
    is_fp32 = layer.compute_dtype in (None, torch.float32)
    if layer.weight.device.type == "cpu" and is_fp32 and HAS_ONEDNN:
        layer.__class__ = CpuLinear4bit
