"""The model of a run without its weights: fake tensors of the right shape, type and device.

Made from config.json alone by the code that loads real models: transformers makes the layers and
replaces those that are held in 4 bits, PEFT adds the adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.tuning import DEFAULT
from anneal_pipeline.memory.loading import bytes_beyond
from anneal_pipeline.memory.plan import Held, moments_bytes
from anneal_pipeline.model.adapters import add_adapters
from anneal_pipeline.model.beginning import activate, add_beginning
from anneal_pipeline.model.loading import make_room_for, trained_in
from anneal_pipeline.model.lora_layers import lora_layers
from anneal_pipeline.model.targets import choose_targets
from anneal_pipeline.model.trained_rows import compute_trained_rows_alone
from anneal_pipeline.training.eight_bit import NAME as PAGED_8BIT

DEVICE = torch.device("cpu")
"""Also for a plan of a GPU: autograd wants a real one for fake CUDA tensors."""


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    model: PeftModel
    mode: FakeTensorMode
    held: Held
    is_packed: bool
    """Whether a sequence holds several rows that must not see each other."""
    vocabulary: int
    tensors: tuple[torch.Tensor, ...]
    """All that the model holds."""
    loading_work: int
    """Bytes by which loading the base needs more than what stays of it."""


def build_skeleton(
    config: PipelineConfig, *, folder: Path, compute: torch.dtype, in_4_bit: bool, on_gpu: bool
) -> Skeleton:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _without_weights():
        whole = _base(config, folder=folder, compute=compute, in_4_bit=in_4_bit)
        work = bytes_beyond(whole, compute=compute, stored=trained_in(folder), on_gpu=on_gpu)
        model, replaced = _tuned(whole, config, folder=folder)
    base, state = _Faker(mode, compute=compute).convert(model)
    if in_4_bit:
        from anneal_pipeline.model.quantization import forbid_repacking, keep_trainable

        # Its fake tensors are the CPU's also in a plan of a GPU, where nothing is ever repacked.
        forbid_repacking(model)
        if not on_gpu:
            with mode:
                keep_trainable(model)
    trainable = [p for p in base if p.requires_grad]
    return Skeleton(
        model=model,
        mode=mode,
        held=Held(
            weights=_num_bytes(p for p in base if not p.requires_grad),
            quantization_state=_num_bytes(state),
            adapters=_num_bytes(trainable),
            optimizer=moments_bytes(
                (p.numel() for p in trainable),
                in_8_bits=config.training.optimizer == PAGED_8BIT,
            )
            + _importance_bytes(config, model),
        ),
        is_packed=config.training.packing,
        vocabulary=model.config.get_text_config().vocab_size,
        tensors=(*base, *state),
        loading_work=max(work, replaced),
    )


@contextmanager
def _without_weights() -> Iterator[None]:
    # The seed of the run's own adapters must not depend on whether there was a plan before.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


def _base(
    config: PipelineConfig, *, folder: Path, compute: torch.dtype, in_4_bit: bool
) -> PreTrainedModel:
    settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, dtype=compute)
    if in_4_bit:
        _put_4_bit_layers(model, config, compute=compute)
    return model


def _tuned(
    model: PreTrainedModel, config: PipelineConfig, *, folder: Path
) -> tuple[PeftModel, int]:
    """The base with its adapters, and the bytes of a table that new tokens made too small."""
    table = model.get_input_embeddings().weight
    num_rows, num_bytes = table.shape[0], table.nbytes
    new_tokens = make_room_for(model, config.tuning.new_tokens, folder=folder)
    is_replaced = model.get_input_embeddings().weight.shape[0] != num_rows
    model.requires_grad_(False)
    model.config.use_cache = False
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    # How they begin takes numbers and moves none of their sizes.
    lora = config.tuning.lora.model_copy(update={"initialization": DEFAULT})
    tuned = add_adapters(
        model,
        lora,
        targets=choose_targets(model, lora),
        seed=config.training.seed,
        new_tokens=new_tokens,
    )
    if config.tuning.lora.is_pissa:
        add_beginning(tuned)
        activate(tuned)
    compute_trained_rows_alone(tuned)
    return tuned, num_bytes if is_replaced else 0


def _put_4_bit_layers(model: Any, config: PipelineConfig, *, compute: torch.dtype) -> None:
    from transformers.quantizers.auto import AutoHfQuantizer

    from anneal_pipeline.model.quantization import quantization_settings

    settings = quantization_settings(config.tuning.quantization, compute=compute)
    quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
    quantizer.preprocess_model(model=model, dtype=compute, device_map={"": str(DEVICE)})


class _Faker:
    """Puts fake tensors in the place of those without a device; tied ones stay one."""

    def __init__(self, mode: FakeTensorMode, *, compute: torch.dtype) -> None:
        self._mode = mode
        self._compute = compute
        self._done: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._state: list[torch.Tensor] = []

    def convert(self, model: torch.nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(parameters and buffers, quantisation state)."""
        with self._mode:
            for module in model.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        module._parameters[name] = self._parameter(module, parameter)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = self._buffer(buffer)
        return [fake for _, fake in self._done.values()], self._state

    def _parameter(self, module: torch.nn.Module, old: torch.nn.Parameter) -> Any:
        known = self._done.get(id(old))
        if known is not None:
            return known[1]
        if type(old).__name__ == "Params4bit":
            from anneal_pipeline.memory.packed import fake_packed

            packed, state = fake_packed(module, old, compute=self._compute, device=DEVICE)
            self._state.extend(state)
            return self._keep(old, packed)
        return self._keep(old, torch.nn.Parameter(self._fake(old), requires_grad=old.requires_grad))

    def _buffer(self, old: torch.Tensor) -> torch.Tensor:
        known = self._done.get(id(old))
        return known[1] if known is not None else self._keep(old, self._fake(old))

    def _keep(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        self._done[id(old)] = (old, new)
        return new

    def _fake(self, old: torch.Tensor) -> torch.Tensor:
        converter = self._mode.fake_tensor_converter
        return converter.from_meta_and_device(self._mode, old.detach(), DEVICE)


def _importance_bytes(config: PipelineConfig, model: PeftModel) -> int:
    """What deciding over ranks remembers of each number of an adapter: two more in fp32."""
    if config.tuning.lora.rank_allocation is None:
        return 0
    layers = (layer for _, layer in lora_layers(model))
    return sum(2 * p.nbytes for layer in layers for p in layer.parameters() if p.requires_grad)


def _num_bytes(tensors: Any) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
