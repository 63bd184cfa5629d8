"""Adapters that begin at the strongest directions of their weights (PiSSA), over an untouched base.

PEFT takes the first product B0 A0 off the base's weights, which then fit no other adapter and are
no base to compare with. Here a second, frozen adapter takes it off instead: W + s(BA - B0 A0) is
the same function, the base stays what it was to the bit, and both adapters together are a plain
LoRA adapter of twice the rank.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from anneal_pipeline.model.lora_layers import lora_layers

TRAINED = "default"
BEGINNING = "beginning"
_AXIS = {"lora_A": 0, "lora_B": 1}
"""Where the rank is."""


OnLayer = Callable[[int, int], None]
"""Told how many layers are done, of how many: each takes seconds. It may raise, to end the work."""


def untold(done: int, total: int) -> None:
    """Nobody listens."""


def is_beginning(name: str) -> bool:
    """True for the parameters that take off what the trained adapter began at."""
    return BEGINNING in name.split(".")


def add_beginning(tuned: PeftModel) -> None:
    """Put a frozen adapter of the same shape beside the trained one."""
    frozen = copy.deepcopy(tuned.peft_config[TRAINED])
    frozen.lora_dropout = 0.0
    frozen.modules_to_save = None
    frozen.ensure_weight_tying = False
    frozen.modules_to_tie = None
    frozen.trainable_token_indices = None
    frozen.bias = "none"
    tuned.add_adapter(BEGINNING, frozen)


def begin_at_principal_directions(
    tuned: PeftModel, method: str, *, on_layer: OnLayer = untold
) -> None:
    """Let every adapter of `tuned` begin by PEFT's `method`, and freeze what takes that off."""
    add_beginning(tuned)
    layers = list(_layers(tuned))
    for done, layer in enumerate(layers, start=1):
        base = layer.get_base_layer()
        untouched = base.weight.data
        layer.pissa_init(TRAINED, method)
        base.weight.data = untouched
        for part, sign in ((layer.lora_A, 1.0), (layer.lora_B, -1.0)):
            part[BEGINNING].weight.data = sign * part[TRAINED].weight.data
        on_layer(done, len(layers))
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
    try:
        with tuned.disable_adapter():
            yield
    finally:
        activate(tuned)  # PEFT has made every adapter trainable that it switched on again


def _layers(tuned: PeftModel) -> Iterator[LoraLayer]:
    return (layer for _, layer in lora_layers(tuned))


def joined(tuned: PeftModel, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by the names of an adapter's file, with both adapters as one of twice the rank."""
    beginning = {
        name.replace(f".{BEGINNING}.", "."): parameter
        for name, parameter in tuned.named_parameters()
        if is_beginning(name)
    }
    return {
        name: torch.cat([tensor, beginning[name]], dim=_AXIS[name.split(".")[-2]])
        if name in beginning
        else tensor
        for name, tensor in trained.items()
    }


def is_sum(tuned: PeftModel, adapter: str) -> bool:
    """True if `adapter` is the trained one and its beginning, scaled as they are, to the bit."""
    return all(_is_sum(layer, adapter) for layer in _layers(tuned))


def _is_sum(layer: LoraLayer, adapter: str) -> bool:
    if not math.isclose(layer.scaling[adapter], layer.scaling[TRAINED]):
        return False
    return all(
        torch.equal(
            part[adapter].weight,
            torch.cat([part[TRAINED].weight, part[BEGINNING].weight], dim=_AXIS[name]),
        )
        for name, part in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B))
    )
