"""LoRA adapters on the base model, through PEFT."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from anneal_pipeline.config.tuning import ALL_LINEAR, LoraConfig
from anneal_pipeline.errors import TARGET_MODULES_NOT_FOUND, UserError


def add_adapters(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> PeftModel:
    """Freeze the base and put fp32 adapters on it; `seed` decides their first values."""
    targets = choose_targets(model, config.target_modules)
    check_ranks(targets, config.rank_pattern)
    peft_config = PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        rank_pattern=dict(config.rank_pattern),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias=config.bias,
        modules_to_save=list(config.modules_to_save) or None,
    )
    torch.manual_seed(seed)
    return get_peft_model(model, peft_config, autocast_adapter_dtype=True)


def linear_names(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers an adapter can sit on: all but the output head."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    ]


def choose_targets(model: PreTrainedModel, patterns: Sequence[str]) -> list[str]:
    """Resolve target patterns to full module names; one that matches nothing is an error."""
    names = linear_names(model)
    if ALL_LINEAR in patterns:
        return names
    chosen: list[str] = []
    for pattern in patterns:
        matches = [name for name in names if name == pattern or name.endswith(f".{pattern}")]
        if not matches:
            raise UserError(TARGET_MODULES_NOT_FOUND, _nothing_matches(pattern, names))
        chosen.extend(matches)
    return sorted(set(chosen), key=names.index)


def check_ranks(targets: Sequence[str], rank_pattern: Mapping[str, int]) -> None:
    """Refuse a rank for modules that get no adapter; PEFT would pass it over in silence."""
    for pattern in rank_pattern:
        # The same rule by which PEFT looks a module's rank up (peft.utils.get_pattern_key).
        try:
            rule = re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise UserError(
                TARGET_MODULES_NOT_FOUND,
                f"tuning.lora.rankPattern names {pattern}, which is no regular expression "
                f"({error}); name a module or its last part",
            ) from error
        if not any(rule.match(name) for name in targets):
            raise UserError(
                TARGET_MODULES_NOT_FOUND,
                f"tuning.lora.rankPattern names {pattern}, which matches no module that gets an "
                f"adapter; these do: {_kinds(targets)}; name one of them",
            )


def _nothing_matches(pattern: str, names: Sequence[str]) -> str:
    return (
        f"tuning.lora.targetModules names {pattern}, which matches no linear layer of the model; "
        f"it has {_kinds(names)}; name one of these or use all-linear"
    )


def _kinds(names: Sequence[str]) -> str:
    kinds = Counter(name.rsplit(".", 1)[-1] for name in names)
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What is trained, by name, in a stable order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; a 4-bit weight counts as the numbers it stands for."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else parameter.numel()
        total += count
        trainable += parameter.numel() if parameter.requires_grad else 0
    return trainable, total
