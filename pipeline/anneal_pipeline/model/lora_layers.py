"""The layers of a tuned model that have an adapter, by the names their base model has for them."""

from __future__ import annotations

from collections.abc import Iterator

from peft import PeftModel
from peft.tuners.lora import LoraLayer

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before every name of the base model."""


def lora_layers(tuned: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    """(name in the base, layer), in the order of the model."""
    return (
        (name.removeprefix(PEFT_PREFIX), module)
        for name, module in tuned.named_modules()
        if isinstance(module, LoraLayer)
    )
