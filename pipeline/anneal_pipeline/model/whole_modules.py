"""Modules that are trained and saved in full beside the adapters (`tuning.lora.modulesToSave`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from anneal_pipeline.errors import ADAPTER_IMPOSSIBLE, TARGET_MODULES_NOT_FOUND, UserError
from anneal_pipeline.model.layers import kinds


def choose_whole_modules(
    model: PreTrainedModel, patterns: Sequence[str], *, adapted: Sequence[str]
) -> list[str]:
    """Resolve patterns to full module names; `adapted` are those that get an adapter.

    PEFT would pass over a pattern that matches nothing in silence, and train a copy of 4-bit
    numbers as if they were weights.
    """
    own = {name: module for name, module in model.named_modules() if _has_weights(module)}
    chosen: dict[str, torch.nn.Module] = {}
    for pattern in patterns:
        matches = {n: m for n, m in own.items() if n == pattern or n.endswith(f".{pattern}")}
        if not matches:
            raise UserError(
                TARGET_MODULES_NOT_FOUND,
                f"tuning.lora.modulesToSave names {pattern}, which matches no module with weights "
                f"of its own; the model has {kinds(own)}; name one of these",
            )
        for name, module in matches.items():
            _check(name, module, pattern=pattern, adapted=adapted)
        chosen.update(matches)
    return [name for name in own if name in chosen]


def _has_weights(module: torch.nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _check(name: str, module: torch.nn.Module, *, pattern: str, adapted: Sequence[str]) -> None:
    if name in adapted:
        raise UserError(
            ADAPTER_IMPOSSIBLE,
            f"tuning.lora.modulesToSave names {pattern}, but {name} gets an adapter already; name "
            "it here or under targetModules, not in both",
        )
    quantised = [key for key, p in module.named_parameters(recurse=False) if not _is_real(p)]
    if quantised:
        raise UserError(
            ADAPTER_IMPOSSIBLE,
            f"tuning.lora.modulesToSave names {pattern}, but {name} is held in 4 bits and cannot "
            "be trained in full; give it an adapter through targetModules, or use method lora",
        )


def _is_real(parameter: torch.nn.Parameter) -> bool:
    return parameter.is_floating_point() and not hasattr(parameter, "quant_state")


def touches_tied_weight(model: PreTrainedModel, names: Sequence[str]) -> bool:
    """True when embeddings and output head are one weight and it is to be trained in full."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None or embedding.weight is not head.weight:
        return False
    tied = {name for name, module in model.named_modules() if module in (embedding, head)}
    return bool(tied.intersection(names))
