"""Bases as plain transformers load them, to hold adapters against, and what a model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from anneal_pipeline.config.tuning import QuantizationConfig
from anneal_pipeline.model.quantization import keep_trainable, quantization_settings

IDS = torch.randint(4, 300, (2, 16), generator=torch.Generator().manual_seed(1))


def logits(model: Any) -> torch.Tensor:
    """Of `IDS`, without dropout: (2, 16, vocabulary)."""
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    model.train()
    return found


def base_of(folder: Path, method: str) -> Any:
    """The base as plain transformers load it; for qlora in 4 bits with the kernels of training."""
    options: dict[str, Any] = {}
    if method == "qlora":
        options["quantization_config"] = quantization_settings(
            QuantizationConfig(), compute=torch.float32
        )
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    keep_trainable(base)
    return base
