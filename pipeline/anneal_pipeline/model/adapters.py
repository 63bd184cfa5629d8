"""LoRA adapters on the base model, through PEFT."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from anneal_pipeline.config.tuning import GAUSSIAN, ORTHOGONAL, LoraConfig
from anneal_pipeline.model.beginning import (
    OnLayer,
    begin_at_principal_directions,
    is_beginning,
    untold,
)
from anneal_pipeline.model.new_tokens import rows_to_train, train_in_fp32
from anneal_pipeline.model.strengths import give_strengths
from anneal_pipeline.model.targets import Targets
from anneal_pipeline.model.whole_modules import choose_whole_modules, touches_tied_weight


def add_adapters(
    model: PreTrainedModel,
    config: LoraConfig,
    *,
    targets: Targets,
    seed: int,
    new_tokens: Sequence[int] = (),
    on_layer: OnLayer = untold,
) -> PeftModel:
    """Freeze the base and put fp32 adapters on it; `seed` decides their first values.

    Of the embeddings the rows of `new_tokens` are trained.
    """
    growth = _alpha_growth(config)
    whole = choose_whole_modules(model, config.modules_to_save, adapted=targets.modules)
    peft_config = PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=config.initial_rank,
        lora_alpha=config.alpha * growth,
        lora_dropout=config.dropout,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        fan_in_fan_out=_holds_weights_transposed(model, targets),
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern={name: alpha * growth for name, alpha in config.alpha_pattern.items()},
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=_peft_initialization(config),
        bias=config.bias,
        modules_to_save=whole or None,
        trainable_token_indices=rows_to_train(model, new_tokens, whole=whole),
        ensure_weight_tying=touches_tied_weight(model, whole),
    )
    torch.manual_seed(seed)
    tuned = get_peft_model(model, peft_config, autocast_adapter_dtype=True)
    train_in_fp32(tuned)
    if config.is_pissa:
        begin_at_principal_directions(tuned, config.initialization, on_layer=on_layer)
    if config.rank_allocation is not None:
        give_strengths(tuned)
    return tuned


def _alpha_growth(config: LoraConfig) -> float:
    """What keeps the scale that of `rank` while there are more ranks than that."""
    growth = config.initial_rank / config.rank
    return math.sqrt(growth) if config.use_rslora else growth


def _peft_initialization(config: LoraConfig) -> Any:
    """What PEFT can do by itself: loftq and pissa come after it."""
    by_itself = config.initialization in (GAUSSIAN, ORTHOGONAL)
    return config.initialization if by_itself else True


def _holds_weights_transposed(model: PreTrainedModel, targets: Targets) -> bool:
    """True for GPT-2's Conv1D; in 4 bits it is an ordinary layer."""
    return any(isinstance(model.get_submodule(name), Conv1D) for name in targets.modules)


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What is trained, by name, in a stable order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def kept_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What a checkpoint holds: what is trained, and what it began at where that is taken off."""
    return {
        name: p for name, p in model.named_parameters() if p.requires_grad or is_beginning(name)
    }


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; a 4-bit weight counts as the numbers it stands for."""
    trainable = total = 0
    for parameter in model.parameters():
        total += count_of(parameter)
        trainable += parameter.numel() if parameter.requires_grad else 0
    return trainable, total


def frozen_base(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """What is frozen and no adapter: neither that which takes off what another began at."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not is_beginning(name):
            yield parameter


def base_bytes(model: torch.nn.Module) -> int:
    """What the frozen base takes, 4-bit weights with their constants."""
    return sum(bytes_of(parameter) for parameter in frozen_base(model))


def count_of(parameter: torch.nn.Parameter) -> int:
    """Its numbers; of a 4-bit weight those it stands for."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


def bytes_of(parameter: torch.nn.Parameter) -> int:
    """What it takes; a 4-bit weight with its constants."""
    state = getattr(parameter, "quant_state", None)
    return parameter.nbytes + (_state_bytes(state) if state is not None else 0)


def _state_bytes(state: Any) -> int:
    """Of a bitsandbytes QuantState."""
    held = [state.absmax, state.code]
    if state.nested:
        held += [state.offset, state.state2.absmax, state.state2.code]
    return sum(tensor.nbytes for tensor in held)
