"""Adapters that begin as what the 4-bit weights have lost (LoftQ, one iteration).

The base stays in its own 4 bits, so the adapter fits every such copy of it; further iterations of
the paper would quantise other numbers. PEFT's `replace_lora_weights_loftq` needs a GPU and leaves
the adapter's scale (alpha / rank) out, which would add the loss that many times.

This module needs bitsandbytes; `four_bit` says whether it can be imported.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import Linear4bit

from anneal_pipeline.errors import MODEL_UNSUPPORTED, UserError
from anneal_pipeline.model.beginning import TRAINED, OnLayer
from anneal_pipeline.model.lora_layers import lora_layers
from anneal_pipeline.model.unquantised import UnquantisedWeights, rounded


@torch.no_grad()
def take_up_losses(tuned: PeftModel, folder: Path, *, on_layer: OnLayer) -> None:
    """Let each adapter on a 4-bit layer begin as the best fit to its weight's rounding errors."""
    weights = UnquantisedWeights(folder, tuned=tuned)
    layers = [item for item in lora_layers(tuned) if isinstance(item[1], Linear4bit)]
    for done, (name, layer) in enumerate(layers, start=1):
        base = layer.get_base_layer()
        whole = weights.read(name, base)
        if whole is None:
            raise UserError(
                MODEL_UNSUPPORTED,
                f"tuning.lora.initialization loftq needs the unquantised weight of {name}, which "
                "the model's files do not hold under that name; use initialization default",
            )
        rank = layer.r[TRAINED]
        lost = whole.float() - rounded(base).float()
        left, strengths, right = torch.linalg.svd(lost, full_matrices=False)
        roots = (strengths[:rank] / layer.scaling[TRAINED]).sqrt()
        layer.lora_A[TRAINED].weight.copy_(roots[:, None] * right[:rank])
        layer.lora_B[TRAINED].weight.copy_(left[:, :rank] * roots)
        on_layer(done, len(layers))
