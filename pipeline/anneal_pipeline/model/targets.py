"""Which weights of a model get an adapter: found by role, or named by the user.

Every linear layer of the text decoder is catalogued with its role and dimensions, and so are the
stacked experts of a mixture, which are bare parameters of three dimensions. What cannot be
decomposed (one row or column), routes tokens, or lies outside the repeated layers is no target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from anneal_pipeline.config.tuning import (
    ALL_ATTENTION,
    ALL_LINEAR,
    ALL_MLP,
    DEFAULT,
    GAUSSIAN,
    LoraConfig,
)
from anneal_pipeline.errors import ADAPTER_IMPOSSIBLE, TARGET_MODULES_NOT_FOUND, UserError
from anneal_pipeline.model.adapter_ranks import check_ranks
from anneal_pipeline.model.layers import Layer, kinds
from anneal_pipeline.model.roles import Role, role_of

KEYWORDS: Mapping[str, frozenset[Role]] = {
    ALL_LINEAR: frozenset({Role.ATTENTION, Role.MLP, Role.EXPERT, Role.OTHER}),
    ALL_ATTENTION: frozenset({Role.ATTENTION}),
    ALL_MLP: frozenset({Role.MLP, Role.EXPERT}),
}


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What gets an adapter."""

    layers: tuple[Layer, ...]
    left_out: tuple[Layer, ...] = ()
    """Experts that the chosen options cannot be applied to."""

    @property
    def modules(self) -> list[str]:
        return [layer.name for layer in self.layers if not layer.num_experts]

    @property
    def parameters(self) -> list[str]:
        return [layer.name for layer in self.layers if layer.num_experts]


def list_layers(model: PreTrainedModel) -> list[Layer]:
    """Every linear layer and expert stack of the model, in its order, but the output head."""
    head = model.get_output_embeddings()
    layers = []
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            size = _dimensions(module)
            layers.append(
                Layer(name=name, role=role_of(name), in_features=size[0], out_features=size[1])
            )
            continue
        layers.extend(_experts_of(name, module))
    return layers


def _dimensions(module: torch.nn.Module) -> tuple[int, int]:
    """(in, out); Conv1D holds its weight the other way round and has no names for them."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def _experts_of(name: str, module: torch.nn.Module) -> list[Layer]:
    found = []
    for key, parameter in module.named_parameters(recurse=False):
        full = f"{name}.{key}"
        if parameter.dim() != 3 or role_of(full) != Role.EXPERT:
            continue
        num, out_features, in_features = (int(size) for size in parameter.shape)
        if getattr(module, "is_transposed", False):
            out_features, in_features = in_features, out_features
        found.append(
            Layer(
                name=full,
                role=Role.EXPERT,
                in_features=in_features,
                out_features=out_features,
                num_experts=num,
            )
        )
    return found


def choose_targets(model: PreTrainedModel, config: LoraConfig) -> Targets:
    """Resolve the target patterns; one that matches nothing is an error that lists what exists."""
    layers = list_layers(model)
    why_not = _reason_against_experts(config)
    chosen: dict[str, Layer] = {}
    left_out: dict[str, Layer] = {}
    for pattern in config.target_modules:
        roles = KEYWORDS.get(pattern)
        if roles is not None:
            matches = [layer for layer in layers if _is_found_by(layer, roles, model=model)]
        else:
            matches = [layer for layer in layers if _is_named(layer.name, pattern)]
        if not matches:
            raise UserError(TARGET_MODULES_NOT_FOUND, _nothing_matches(pattern, model, layers))
        for layer in matches:
            if not (layer.num_experts and why_not):
                chosen[layer.name] = layer
            elif roles is not None:
                left_out[layer.name] = layer
            else:
                raise UserError(
                    ADAPTER_IMPOSSIBLE,
                    f"tuning.lora.targetModules names {pattern}, a stack of experts, which gets "
                    f"no adapter with {why_not}",
                )
    if not chosen:
        raise UserError(
            ADAPTER_IMPOSSIBLE,
            f"tuning.lora.targetModules finds nothing but stacked experts ({kinds(left_out)}), "
            f"which get no adapter with {why_not}",
        )
    ordered = tuple(layer for layer in layers if layer.name in chosen)
    check_ranks(ordered, config)
    return Targets(layers=ordered, left_out=tuple(left_out.values()))


def _is_named(name: str, pattern: str) -> bool:
    return name == pattern or name.endswith(f".{pattern}")


def _is_found_by(layer: Layer, roles: frozenset[Role], *, model: PreTrainedModel) -> bool:
    """By keyword only what text passes through counts: no vision or audio towers."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    inside = not prefix or layer.name.startswith(f"{prefix}.")
    return inside and layer.role in roles and layer.max_rank > 1


def _reason_against_experts(config: LoraConfig) -> str | None:
    """PEFT changes the stacked weight itself, so what acts on a layer's input cannot be had."""
    if config.dropout > 0:
        return f"tuning.lora.dropout {config.dropout:g}; set dropout to 0"
    if config.use_dora:
        return "tuning.lora.useDora; set it to false"
    if config.rank_allocation is not None:
        return "tuning.lora.rankAllocation; remove it"
    if config.initialization not in (DEFAULT, GAUSSIAN):
        return f"tuning.lora.initialization {config.initialization}; use {DEFAULT}"
    return None


def _nothing_matches(pattern: str, model: PreTrainedModel, layers: Sequence[Layer]) -> str:
    said = f"tuning.lora.targetModules names {pattern}, "
    offered = f"the model's linear layers are {kinds([layer.name for layer in layers])}"
    for name, module in model.named_modules():
        if _is_named(name, pattern) and not list(module.children()):
            return (
                f"{said}which is no linear layer inside the model but {_what(model, module)}; to "
                f"train it in full name it under tuning.lora.modulesToSave; {offered}"
            )
    return (
        f"{said}which matches no linear layer of the model; {offered}; name one of these or use "
        f"{ALL_LINEAR}"
    )


def _what(model: PreTrainedModel, module: torch.nn.Module) -> str:
    is_head = module is model.get_output_embeddings()
    return "its output head" if is_head else f"a {type(module).__name__}"
