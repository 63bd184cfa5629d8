"""What loading a base needs beyond what stays of it, from the model without its weights.

transformers 5.23 maps the files and puts one weight after another in its place, by their names
(`core_model_loading`). A weight of the file's own type stays in the mapped pages, another one is
cast into memory of its own; neither takes more than what stays, by however many threads. Three
things do:

- A weight for 4 bits, which bitsandbytes quantises: one at a time and without threads.
- A stack of experts, which is put together from pieces that are there until it is done.
- A table of embeddings that gets more rows (`tuning.newTokens`): there are two for a moment.

Pages of the file that were read and do not stay are not counted: the kernel takes them back when
memory is short. Nor is what a decomposed beginning of adapters (PiSSA, LoftQ) works on.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import dot_natural_key

OVERHEAD_BYTES = 16 << 20
"""Where weights are quantised on a CPU: what bitsandbytes imports then, and holes in the heap;
measured by tests/benchmarks/loading_memory.py."""
_WORK_BYTES = {"nf4": 10, "fp4": 24}
"""For each number that is quantised on a CPU, beside the number itself in fp32. bitsandbytes 0.50
goes through the whole weight at once: its scaled copy in fp32, the index of each number in int32
and in uint8, and the halves of the result; FP4 looks its indices up again, in int64."""
_FP32_BYTES = 4
_EXPERT_DIMS = 3


def bytes_beyond(
    model: torch.nn.Module, *, compute: torch.dtype, stored: str | None, on_gpu: bool
) -> int:
    """Bytes by which the peak is higher than what stays in the end.

    `model` is the base with its 4-bit layers and neither weights nor adapters, `stored` the type of
    its files (None: not known, taken for another one than `compute`).
    """
    is_cast = stored != str(compute).removeprefix("torch.")
    weights = sorted(model.named_parameters(), key=lambda named: dot_natural_key(named[0]))
    is_quantised = False
    there = peak = 0
    for name, weight in weights:
        work = _putting_together(weight)
        if _is_for_4_bit(weight):
            is_quantised = True
            module = model.get_submodule(name.rpartition(".")[0])
            work = _quantising(module, weight, compute=compute, is_cast=is_cast, on_gpu=on_gpu)
        there += _stays(weight)
        peak = max(peak, there + work)
    return peak - there + (OVERHEAD_BYTES if is_quantised and not on_gpu else 0)


def _stays(weight: torch.Tensor) -> int:
    """Without the constants of 4-bit weights."""
    return weight.numel() // 2 if _is_for_4_bit(weight) else weight.nbytes


def _putting_together(weight: torch.Tensor) -> int:
    return weight.nbytes if weight.dim() >= _EXPERT_DIMS else 0


def _quantising(
    module: Any, weight: Any, *, compute: torch.dtype, is_cast: bool, on_gpu: bool
) -> int:
    numbers: int = weight.numel()
    # A GPU gets the weight as it is computed with; on a CPU it may lie in the file's pages.
    each = compute.itemsize if is_cast or on_gpu else 0
    if not issubclass(module.source_cls, torch.nn.Linear):
        each += compute.itemsize  # GPT-2's Conv1D lies across: turned first, into a copy
    if on_gpu:
        return each * numbers
    each += _WORK_BYTES[weight.quant_type] + (0 if compute == torch.float32 else _FP32_BYTES)
    return each * numbers


def _is_for_4_bit(weight: torch.Tensor) -> bool:
    return type(weight).__name__ == "Params4bit"
