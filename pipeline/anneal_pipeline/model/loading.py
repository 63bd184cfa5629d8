"""The base model and its tokenizer, from a local folder of safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    __version__,
)

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.tuning import LOFTQ, LoraConfig
from anneal_pipeline.device import compute_dtype
from anneal_pipeline.errors import MODEL_UNSUPPORTED, UserError
from anneal_pipeline.model.adapters import (
    add_adapters,
    base_bytes,
    count_of,
    count_parameters,
    frozen_base,
    trainable_parameters,
)
from anneal_pipeline.model.advice import advice, experts_left_out, experts_left_whole
from anneal_pipeline.model.beginning import OnLayer, untold
from anneal_pipeline.model.cpu_linear import speed_up_frozen
from anneal_pipeline.model.folder import CONFIG_NAME
from anneal_pipeline.model.four_bit import BaseForm, choose_base_form
from anneal_pipeline.model.layers import Layer
from anneal_pipeline.model.new_tokens import extend_tokenizer, make_room, pieces_of
from anneal_pipeline.model.targets import Targets, choose_targets, list_layers
from anneal_pipeline.model.trainable import require_only_adapters_trained
from anneal_pipeline.model.trained_rows import compute_trained_rows_alone
from anneal_pipeline.model.weight_files import require_all_loaded


@dataclass(frozen=True, kw_only=True)
class TunedModel:
    model: PeftModel
    device: torch.device
    compute: torch.dtype
    num_trainable: int
    num_parameters: int
    num_targets: int
    num_base: int
    """Of the frozen base."""
    base_bytes: int
    """What the frozen base takes, 4-bit weights with their constants."""
    method: str
    """qlora or lora, as it came to be."""
    warnings: tuple[str, ...] = ()
    """What is unusual about it, for the user."""

    @property
    def compression(self) -> float:
        """The frozen base in 16 bits over what it takes."""
        return 2 * self.num_base / self.base_bytes

    def summary(self) -> str:
        share = 100 * self.num_trainable / self.num_parameters
        kind = str(self.compute).removeprefix("torch.")
        return (
            f"Training {self.num_trainable:,} of {self.num_parameters:,} parameters "
            f"({share:.2f} %) in {self.num_targets} adapters, computing in {kind} on {self.device}"
        )


def load_tokenizer(folder: Path, *, new_tokens: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            MODEL_UNSUPPORTED,
            f"The tokenizer of the model cannot be loaded ({error}); expected tokenizer.json and "
            "tokenizer_config.json beside the weights, as save_pretrained() of the tokenizer "
            "writes them; upload them again",
        ) from error
    if tokenizer.pad_token_id is None:
        # Padding is masked by length, never by id, so that the EOS keeps its label.
        tokenizer.pad_token = tokenizer.eos_token
    extend_tokenizer(tokenizer, new_tokens)
    return tokenizer


def choose_compute(config: PipelineConfig, *, folder: Path, device: torch.device) -> torch.dtype:
    """The type that products run in; one that device or model cannot have is refused."""
    return compute_dtype(
        config.tuning.quantization.compute_dtype,
        device=device,
        trained_in=trained_in(folder),
        trains_whole=bool(config.tuning.lora.modules_to_save),
    )


def load_tuned_model(
    config: PipelineConfig,
    *,
    folder: Path,
    device: torch.device,
    form: BaseForm | None = None,
    on_layer: OnLayer = untold,
) -> TunedModel:
    """Load the base (in 4 bits for qlora), freeze it and add fresh adapters.

    `on_layer` is told of those that begin as a decomposition of their weight.
    """
    form = form or choose_base_form(config.tuning, device=device)
    compute = choose_compute(config, folder=folder, device=device)
    base = load_base(config, folder=folder, device=device, compute=compute, form=form)
    new_tokens = make_room_for(base, config.tuning.new_tokens, folder=folder)
    base.requires_grad_(False)
    if form.in_4_bit:
        _keep_trainable(base)
    base.config.use_cache = False
    if config.training.gradient_checkpointing:
        _checkpoint_activations(base, uri=config.model.uri)
    targets = choose_targets(base, config.tuning.lora)
    stacks = [layer for layer in list_layers(base) if layer.num_experts] if form.in_4_bit else []
    tuned = add_adapters(
        base,
        config.tuning.lora,
        targets=targets,
        seed=config.training.seed,
        new_tokens=new_tokens,
        on_layer=on_layer,
    )
    if form.in_4_bit and config.tuning.lora.initialization == LOFTQ:
        _take_up_losses(tuned, folder, on_layer=on_layer)
    compute_trained_rows_alone(tuned)
    speed_up_frozen(tuned)
    require_only_adapters_trained(
        trainable_parameters(tuned), config.tuning.lora, has_new_tokens=bool(new_tokens)
    )
    trainable, total = count_parameters(tuned)
    return TunedModel(
        model=tuned,
        device=device,
        compute=compute,
        num_trainable=trainable,
        num_parameters=total,
        num_targets=len(targets.layers),
        num_base=sum(count_of(parameter) for parameter in frozen_base(tuned)),
        base_bytes=base_bytes(tuned),
        method=form.method,
        warnings=(
            *([form.notice] if form.notice else []),
            *_warnings(config.tuning.lora, tuned, targets=targets, unquantised=stacks),
        ),
    )


def _checkpoint_activations(base: PreTrainedModel, *, uri: str) -> None:
    try:
        base.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            MODEL_UNSUPPORTED,
            f"Model {uri} (a {base.config.model_type}) cannot be trained with "
            f"training.gradientCheckpointing ({error}); set it to false",
        ) from error


def make_room_for(base: PreTrainedModel, tokens: Sequence[str], *, folder: Path) -> list[int]:
    """Give the base rows for new tokens, by the tokenizer in `folder`; returns their ids."""
    if not tokens:
        return []
    extended = load_tokenizer(folder, new_tokens=tokens)
    pieces = pieces_of(tokens, before=load_tokenizer(folder), now=extended)
    make_room(base, pieces)
    return list(pieces)


def _warnings(
    config: LoraConfig, tuned: PeftModel, *, targets: Targets, unquantised: Sequence[Layer]
) -> Iterator[str]:
    trainable, total = count_parameters(tuned)
    if unquantised:
        yield experts_left_whole(unquantised, num_parameters=total)
    if targets.left_out:
        yield experts_left_out(targets.left_out, config)
    yield from advice(
        config,
        num_trainable=trainable,
        num_parameters=total,
        base_bytes=base_bytes(tuned),
    )


def trained_in(folder: Path) -> str | None:
    """The type the base was published in, as its config tells."""
    config = json.loads((folder / CONFIG_NAME).read_bytes())
    stored: str | None = config.get("dtype") or config.get("torch_dtype")
    return stored


def _keep_trainable(base: PreTrainedModel) -> None:
    from anneal_pipeline.model.quantization import keep_trainable

    keep_trainable(base)


def _take_up_losses(tuned: PeftModel, folder: Path, *, on_layer: OnLayer) -> None:
    from anneal_pipeline.model.loftq import take_up_losses

    take_up_losses(tuned, folder, on_layer=on_layer)


def load_base(
    config: PipelineConfig,
    *,
    folder: Path,
    device: torch.device,
    compute: torch.dtype,
    form: BaseForm,
) -> PreTrainedModel:
    options: dict[str, Any] = {}
    if form.in_4_bit:
        # Only here and above is bitsandbytes needed: plain LoRA does without it.
        from anneal_pipeline.model.quantization import quantization_settings

        options["quantization_config"] = quantization_settings(
            config.tuning.quantization, compute=compute
        )
    uri = config.model.uri
    try:
        base, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=compute,
            device_map={"": str(device)},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            # What is missing or of another shape is named below, and never left to chance.
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (ValueError, KeyError) as error:
        raise UserError(
            MODEL_UNSUPPORTED,
            f"Model {uri} cannot be loaded as a causal language model: {_words(error)} Expected a "
            f"text-generation architecture that transformers {__version__} has, with the "
            "config.json it was published with; name such a model",
        ) from error
    except (SafetensorError, OSError) as error:
        # What the operating system says has a number, and is no mistake in the model.
        if getattr(error, "errno", None) is not None:
            raise
        raise UserError(
            MODEL_UNSUPPORTED,
            f"The weights of model {uri} cannot be read: {_words(error)} Upload its own files "
            "again",
        ) from error
    require_all_loaded(info, uri=uri)
    if form.in_4_bit:
        from anneal_pipeline.model.quantization import mismatched_layers

        mismatched = mismatched_layers(base)
        require_all_loaded({"missing_keys": (), "mismatched_keys": mismatched}, uri=uri)
    return base


def _words(error: Exception) -> str:
    """What the library says, without its advice for people with a shell."""
    words = " ".join(str(error).partition("\n\n")[0].split())
    return words if words.endswith(".") else f"{words}."
