"""A 4-bit weight that holds no numbers, as bitsandbytes lays it out."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import QuantState

BLOCK = 64
"""Weights that share a constant."""
STATE_BLOCK = 256
"""Constants that share one of their own with double quantisation."""


def fake_packed(
    layer: Any, weight: Any, *, compute: torch.dtype, device: torch.device
) -> tuple[torch.nn.Parameter, list[torch.Tensor]]:
    """(packed weight with its state, the tensors of the state); call it in a fake mode."""
    count = layer.in_features * layer.out_features
    blocks = -(-count // BLOCK)
    is_nested = bool(weight.compress_statistics)
    absmax = torch.empty(blocks, dtype=torch.uint8 if is_nested else torch.float32, device=device)
    code = torch.empty(16, device=device)
    state2, extra = None, []
    if is_nested:
        extra = [torch.empty(-(-blocks // STATE_BLOCK), device=device)]
        extra += [torch.empty(256, device=device), torch.empty((), device=device)]
        state2 = QuantState(
            absmax=extra[0], blocksize=STATE_BLOCK, code=extra[1], dtype=torch.float32
        )
    state = QuantState(
        absmax=absmax,
        shape=torch.Size((layer.out_features, layer.in_features)),
        dtype=compute,
        blocksize=BLOCK,
        code=code,
        quant_type=weight.quant_type,
        offset=extra[2] if is_nested else None,
        state2=state2,
    )
    packed: Any = torch.empty((count + 1) // 2, 1, dtype=torch.uint8, device=device)
    parameter: Any = torch.nn.Parameter(packed, requires_grad=False)
    parameter.quant_state = state
    return parameter, [absmax, code, *extra]
