"""The frozen base in 4 bits, through bitsandbytes.

On CPUs with AVX512-BF16, bitsandbytes 0.50.2 repacks a `Linear4bit` for inference the first time it
runs in eval mode without gradients, and never goes back: training then passes through a kernel
without autograd, inputs get no gradient, and the model quietly hardly learns. `keep_trainable`
switches that off.

This module needs bitsandbytes; `four_bit` says whether it can be imported.
"""

from __future__ import annotations

import bitsandbytes
import torch
from transformers import BitsAndBytesConfig

from anneal_pipeline.config.tuning import QuantizationConfig
from anneal_pipeline.model.cpu_linear_4bit import speed_up


def quantization_settings(
    config: QuantizationConfig, *, compute: torch.dtype
) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.type,
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=compute,
    )


def keep_trainable(model: torch.nn.Module) -> int:
    """Forbid the one-way repacking on every 4-bit layer; return how many there are.

    Layers that compute in fp32 on the CPU also get faster products.
    """
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
        speed_up(layer)
    return len(layers)


def mismatched_layers(
    model: torch.nn.Module,
) -> set[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """(name, shape in the files, shape expected) of 4-bit weights that do not fit their layer.

    transformers compares the shapes of all other weights, and leaves these out.
    """
    found: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            stored = tuple(layer.weight.quant_state.shape)
            wanted = (layer.out_features, layer.in_features)
            if stored != wanted:
                found.add((f"{name}.weight", stored, wanted))
    return found
