"""Adapters that begin at the strongest directions of their weights (PiSSA), over an untouched base.

PEFT takes the first product B0 A0 off the base's weights, which then fit no other adapter and are
no base to compare with. Here a second, frozen adapter takes it off instead: W + s(BA - B0 A0) is
the same function, the base stays what it was to the bit, and both adapters together are a plain
LoRA adapter of twice the rank.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

TRAINED = "default"
BEGINNING = "beginning"


def is_beginning(name: str) -> bool:
    """True for the parameters that take off what the trained adapter began at."""
    return BEGINNING in name.split(".")


def begin_at_principal_directions(tuned: PeftModel, method: str) -> None:
    """Let every adapter of `tuned` begin by PEFT's `method`, and freeze what takes that off."""
    frozen = copy.deepcopy(tuned.peft_config[TRAINED])
    frozen.lora_dropout = 0.0
    frozen.modules_to_save = None
    frozen.trainable_token_indices = None
    frozen.bias = "none"
    tuned.add_adapter(BEGINNING, frozen)
    for layer in _layers(tuned):
        base = layer.get_base_layer()
        untouched = base.weight.data
        layer.pissa_init(TRAINED, method)
        base.weight.data = untouched
        for part, sign in ((layer.lora_A, 1.0), (layer.lora_B, -1.0)):
            part[BEGINNING].weight.data = sign * part[TRAINED].weight.data
    activate(tuned)


def activate(tuned: PeftModel) -> None:
    """Let the trained adapter act, and beside it what takes its beginning off, if it has that."""
    tuned.set_adapter(TRAINED)
    for layer in _layers(tuned):
        if BEGINNING in layer.lora_A:
            layer.set_adapter([TRAINED, BEGINNING])
            layer.lora_A[BEGINNING].requires_grad_(False)
            layer.lora_B[BEGINNING].requires_grad_(False)


@contextmanager
def base_alone(tuned: PeftModel) -> Iterator[None]:
    """The base without its adapters."""
    with tuned.disable_adapter():
        yield
    activate(tuned)  # PEFT has made every adapter trainable that it switched on again


def _layers(tuned: PeftModel) -> Iterator[LoraLayer]:
    return (module for module in tuned.modules() if isinstance(module, LoraLayer))


def joined(
    trained: dict[str, torch.Tensor], beginning: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Both adapters as one of twice the rank; `beginning` has the same names."""
    axis = {"lora_A": 0, "lora_B": 1}
    return {
        name: torch.cat([tensor, beginning[name]], dim=axis[name.split(".")[-2]])
        if name in beginning
        else tensor
        for name, tensor in trained.items()
    }
