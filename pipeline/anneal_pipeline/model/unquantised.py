"""The weights of 4-bit layers as the model's own files hold them.

This module needs bitsandbytes; `four_bit` says whether it can be imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers.pytorch_utils import Conv1D

_INNER = ".base_layer"
"""Where PEFT keeps a layer that has an adapter."""


def layers_in_4_bit(tuned: PeftModel) -> Iterator[tuple[str, Linear4bit]]:
    """(name in the base, layer), with an adapter or without, in the order of the model."""
    return (
        (name.removesuffix(_INNER), module)
        for name, module in tuned.get_base_model().named_modules()
        if isinstance(module, Linear4bit)
    )


def rounded(layer: Linear4bit) -> torch.Tensor:
    """[out, in]: the numbers that a layer holds, in the type it computes with."""
    held = layer.weight
    numbers: torch.Tensor = dequantize_4bit(held.data, held.quant_state)
    return numbers


class UnquantisedWeights:
    """Read one at a time from a model folder; `tuned` tells by which names."""

    def __init__(self, folder: Path, *, tuned: PeftModel) -> None:
        self._prefix = tuned.get_base_model().base_model_prefix
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            # One that is no such file is none that the model was loaded from.
            with suppress(SafetensorError), safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def read(self, name: str, layer: Linear4bit) -> torch.Tensor | None:
        """[out, in] in the type of the file, where the layer is; None if no file has that name.

        The names in the files may have the prefix of the whole model or not.
        """
        for key in (f"{name}.weight", f"{name.removeprefix(f'{self._prefix}.')}.weight"):
            if key in self._files:
                with safe_open(self._files[key], framework="pt") as file:
                    whole: torch.Tensor = file.get_tensor(key)
                whole = whole.to(layer.weight.device)
                # transformers leaves there what the layer was before, which tells its orientation.
                is_conv1d = issubclass(getattr(layer, "source_cls", torch.nn.Linear), Conv1D)
                return whole.T if is_conv1d else whole
        return None
