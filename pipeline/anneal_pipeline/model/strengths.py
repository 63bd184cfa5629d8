"""Adapters whose directions each have a strength, so that a single one can be pruned (AdaLoRA).

The update of a weight is s B diag(g e) A: the rows of A and the columns of B begin orthonormal,
the strengths e at zero, so that step 0 is the base. PEFT's own AdaLoRA layers cannot stand beside a
LoRA adapter, change a base's output in place and scale by a rank that is not the exported one; here
it is PEFT's LoRA layer, on any base it supports, whose first matrix has the strengths in it.
Strengths folded into A, and pruned directions left out, make it a plain LoRA adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from anneal_pipeline.model.beginning import TRAINED
from anneal_pipeline.model.lora_layers import PEFT_PREFIX, lora_layers

A_WEIGHT, B_WEIGHT, STRENGTHS = "lora_A.weight", "lora_B.weight", "lora_A.strengths"


class StrengthLinear(torch.nn.Linear):
    """diag(g e) A: the first matrix of an adapter, with a strength for each of its rows."""

    def __init__(self, of: torch.nn.Linear, *, gain: float) -> None:
        place: dict[str, Any] = {"device": of.weight.device, "dtype": of.weight.dtype}
        super().__init__(of.in_features, of.out_features, bias=False, **place)
        # A column, because PEFT takes a vector for a weight that lost its shape.
        self.strengths = torch.nn.Parameter(torch.zeros(of.out_features, 1, **place))
        self.gain = gain
        """Fixed. Adam moves a strength by the learning rate in a step; in LoRA it moves a column of
        B, of out_features numbers, by that times sqrt(out_features)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (self.gain * self.strengths).t()

    def folded(self) -> torch.Tensor:
        """(rank, in): A with the strengths in it."""
        return self.weight * (self.gain * self.strengths)


def give_strengths(tuned: PeftModel) -> None:
    """Put strengths into every adapter of `tuned`; its directions become orthonormal ones."""
    for _, layer in lora_layers(tuned):
        second = layer.lora_B[TRAINED]
        first = StrengthLinear(layer.lora_A[TRAINED], gain=math.sqrt(second.out_features))
        layer.lora_A[TRAINED] = first
        if not first.weight.is_meta:  # a plan of memory wants sizes alone
            torch.nn.init.orthogonal_(first.weight)
            torch.nn.init.orthogonal_(second.weight)


def has_strengths(tuned: PeftModel) -> bool:
    return any(isinstance(layer.lora_A[TRAINED], StrengthLinear) for _, layer in lora_layers(tuned))


def kept(tuned: PeftModel) -> dict[str, torch.Tensor]:
    """Indices of the directions that do anything, by module; a module without any is left out.

    Of a model without any, one direction of zeros stands for all: PEFT has no empty adapter.
    """
    found = {
        name: torch.nonzero(layer.lora_A[TRAINED].strengths.detach().flatten()).flatten()
        for name, layer in lora_layers(tuned)
    }
    left = {name: indices for name, indices in found.items() if len(indices)}
    if left:
        return left
    name, indices = next(iter(found.items()))
    return {name: indices.new_zeros(1)}


def folded(tuned: PeftModel, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by the names of an adapter's file, as a plain LoRA adapter without pruned parts."""
    parts = (A_WEIGHT, B_WEIGHT, STRENGTHS)
    found = {name: tensor for name, tensor in trained.items() if not name.endswith(parts)}
    layers = dict(lora_layers(tuned))
    for name, indices in kept(tuned).items():
        prefix = f"{PEFT_PREFIX}{name}."
        found[prefix + A_WEIGHT] = layers[name].lora_A[TRAINED].folded()[indices]
        found[prefix + B_WEIGHT] = layers[name].lora_B[TRAINED].weight[:, indices]
    return found


def folded_config(tuned: PeftModel) -> dict[str, Any]:
    """What a PEFT config says of the folded adapter.

    r is the greatest rank and lora_alpha / r the scale, for engines that read no patterns; only
    where alphaPattern gives modules scales of their own do these need one that does.
    """
    layers = dict(lora_layers(tuned))
    ranks = {name: len(indices) for name, indices in kept(tuned).items()}
    greatest = max(ranks.values())
    config = tuned.peft_config[TRAINED]
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    return {
        "r": greatest,
        "lora_alpha": scale * greatest,
        "target_modules": sorted(ranks),
        "rank_pattern": ranks,
        "alpha_pattern": {name: layers[name].scaling[TRAINED] * ranks[name] for name in ranks},
        "use_rslora": False,
    }


def is_folded(tuned: PeftModel, adapter: str) -> bool:
    """True if `adapter` is the trained one with its strengths folded in, to the bit."""
    left, layers = kept(tuned), dict(lora_layers(tuned))
    there = {name for name, layer in layers.items() if adapter in layer.lora_A}
    return there == set(left) and all(
        _is_folded(layers[name], adapter, indices=indices) for name, indices in left.items()
    )


def _is_folded(layer: LoraLayer, adapter: str, *, indices: torch.Tensor) -> bool:
    first, second = layer.lora_A[TRAINED], layer.lora_B[TRAINED]
    return (
        math.isclose(layer.scaling[adapter], layer.scaling[TRAINED])
        and torch.equal(layer.lora_A[adapter].weight, first.folded()[indices])
        and torch.equal(layer.lora_B[adapter].weight, second.weight[:, indices])
    )
