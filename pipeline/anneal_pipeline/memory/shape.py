"""The dimensions of a model that decide its memory, from its config.json and weight headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anneal_pipeline.errors import PipelineError
from anneal_pipeline.memory.weight_files import StoredTensor, read_tensors
from anneal_pipeline.model.folder import CONFIG_NAME
from anneal_pipeline.model.layers import Layer
from anneal_pipeline.model.roles import Role, role_of

EAGER_FAMILIES = frozenset({"bloom", "mpt", "gemma2"})
"""Families whose attention weights exist as a whole: no fused kernel knows their bias or cap."""


class ShapeUnknownError(PipelineError):
    """The config names its dimensions in a way no table has: nothing can be planned."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    hidden: int
    num_layers: int
    num_heads: int
    query_size: int
    """Heads x size of a head."""
    intermediate: int
    vocabulary: int
    is_gated: bool
    is_eager: bool
    layers: tuple[Layer, ...]
    """Every linear layer and expert of the decoder's layers."""
    num_other: int
    """Parameters outside them: embeddings, norms, head, biases."""

    @property
    def num_parameters(self) -> int:
        return self.num_other + sum(layer.num_parameters for layer in self.layers)


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model in `folder`."""
    config = json.loads((folder / CONFIG_NAME).read_bytes())
    return shape_of(config, read_tensors(folder))


def shape_of(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> ModelShape:
    text = {**config, **config.get("text_config", {})}
    layers = _layers(tensors)
    hidden = _first(text, "hidden_size", "n_embd", "d_model", "dim")
    heads = _first(text, "num_attention_heads", "n_head", "n_heads")
    mlp = [layer for layer in layers if layer.role in (Role.MLP, Role.EXPERT)]
    known = sum(layer.num_parameters for layer in layers)
    head_size = text.get("head_dim") or hidden // heads
    return ModelShape(
        hidden=hidden,
        num_layers=_first(text, "num_hidden_layers", "n_layer", "n_layers"),
        num_heads=heads,
        query_size=heads * head_size,
        intermediate=text.get("intermediate_size")
        or text.get("ffn_dim")
        or max((max(layer.in_features, layer.out_features) for layer in mlp), default=4 * hidden),
        vocabulary=_first(text, "vocab_size"),
        is_gated=any("gate" in layer.name.rsplit(".", 1)[-1] for layer in mlp),
        is_eager=text.get("model_type") in EAGER_FAMILIES,
        layers=layers,
        num_other=sum(tensor.num_numbers for tensor in tensors.values()) - known,
    )


def _layers(tensors: Mapping[str, StoredTensor]) -> tuple[Layer, ...]:
    found = []
    for full, tensor in tensors.items():
        name = full.removesuffix(".weight")
        role = role_of(name)
        if role == Role.NONE or len(tensor.shape) not in (2, 3) or full.endswith(".bias"):
            continue
        num_experts = tensor.shape[0] if len(tensor.shape) == 3 else int(role == Role.EXPERT)
        found.append(
            Layer(
                name=name,
                role=role,
                in_features=tensor.shape[-1],
                out_features=tensor.shape[-2],
                num_experts=num_experts,
            )
        )
    return tuple(found)


def _first(config: Mapping[str, Any], *keys: str) -> int:
    for key in keys:
        if config.get(key):
            return int(config[key])
    raise ShapeUnknownError(f"{CONFIG_NAME} of the model has none of {', '.join(keys)}")
