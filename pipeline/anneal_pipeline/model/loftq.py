"""Adapters that begin as what the 4-bit weights have lost (LoftQ, one iteration).

The base stays in its own 4 bits, so the adapter fits every such copy of it; further iterations of
the paper would quantise other numbers. PEFT's `replace_lora_weights_loftq` needs a GPU and leaves
the adapter's scale (alpha / rank) out, which would add the loss that many times.

This module needs bitsandbytes; `four_bit` says whether it can be imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from peft.tuners.lora import Linear4bit
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

from anneal_pipeline.errors import MODEL_UNSUPPORTED, UserError
from anneal_pipeline.model.beginning import TRAINED, OnLayer
from anneal_pipeline.model.lora_layers import PEFT_PREFIX


@torch.no_grad()
def take_up_losses(tuned: PeftModel, folder: Path, *, on_layer: OnLayer) -> None:
    """Let each adapter on a 4-bit layer begin as the best fit to its weight's rounding errors."""
    weights = _Weights(folder, prefix=tuned.get_base_model().base_model_prefix)
    layers = list(_layers(tuned))
    for done, (name, layer) in enumerate(layers, start=1):
        held = layer.weight
        whole = weights.read(name.removeprefix(PEFT_PREFIX)).to(held.device, torch.float32)
        if issubclass(getattr(layer.get_base_layer(), "source_cls", torch.nn.Linear), Conv1D):
            whole = whole.T
        lost = whole - dequantize_4bit(held.data, held.quant_state).float()
        rank = layer.r[TRAINED]
        left, strengths, right = torch.linalg.svd(lost, full_matrices=False)
        roots = (strengths[:rank] / layer.scaling[TRAINED]).sqrt()
        layer.lora_A[TRAINED].weight.copy_(roots[:, None] * right[:rank])
        layer.lora_B[TRAINED].weight.copy_(left[:, :rank] * roots)
        on_layer(done, len(layers))


def _layers(tuned: PeftModel) -> Iterator[tuple[str, Linear4bit]]:
    return (item for item in tuned.named_modules() if isinstance(item[1], Linear4bit))


class _Weights:
    """The unquantised weights of a model folder, one at a time."""

    def __init__(self, folder: Path, *, prefix: str) -> None:
        self._prefix = prefix
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def read(self, module: str) -> torch.Tensor:
        """The weight of a module, in files with or without the prefix of the whole model."""
        for key in (f"{module}.weight", f"{module.removeprefix(f'{self._prefix}.')}.weight"):
            if key in self._files:
                with safe_open(self._files[key], framework="pt") as file:
                    found: torch.Tensor = file.get_tensor(key)
                    return found
        raise UserError(
            MODEL_UNSUPPORTED,
            f"tuning.lora.initialization loftq needs the unquantised weight of {module}, which the "
            "model's files do not hold under that name; use initialization default",
        )
