"""Models of every family with adapters that have learnt something, for tests of their use."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from tests.unit.pipeline.families import VOCABULARY, make_family

from anneal_pipeline.config.tuning import LoraConfig
from anneal_pipeline.model.adapters import add_adapters, trainable_parameters
from anneal_pipeline.model.targets import choose_targets


def adapted(family: str = "llama", *, vocabulary: int = VOCABULARY, **lora: Any) -> PeftModel:
    """With random factors in place of those that begin as zero."""
    model = make_family(family, vocabulary=vocabulary)
    config = LoraConfig.parse({"rank": 4, "dropout": 0.0, **lora})
    tuned = add_adapters(model, config, targets=choose_targets(model, config), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in trainable_parameters(tuned).items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 100)
    return tuned


def backward(model: PeftModel) -> None:
    """Gradients of one batch."""
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    logits = model(input_ids=ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
