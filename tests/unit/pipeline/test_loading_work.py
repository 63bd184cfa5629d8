"""What loading needs beside what stays, for one weight of each kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from anneal_pipeline.memory.loading import OVERHEAD_BYTES, bytes_beyond

NUMBERS = 64 * 96
FP32, BF16 = torch.float32, torch.bfloat16


def packed(source: type = torch.nn.Linear, *, kind: str = "nf4") -> torch.nn.Module:
    """As transformers puts it in the place of a layer."""
    from bitsandbytes.nn import Linear4bit

    layer: Any = Linear4bit(64, 96, bias=False, quant_type=kind, device="meta")
    layer.source_cls = source
    return layer


def whole(*shape: int) -> torch.nn.Module:
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.empty(shape, device="meta"))
    return layer


@pytest.mark.parametrize(
    ("layer", "compute", "stored", "want"),
    [
        pytest.param(packed(), FP32, "bfloat16", 14, id="cast to fp32"),
        pytest.param(packed(), FP32, None, 14, id="of unknown type"),
        pytest.param(packed(), FP32, "float32", 10, id="in the file's pages"),
        pytest.param(packed(), BF16, "bfloat16", 14, id="16 bits, in the file's pages"),
        pytest.param(packed(), BF16, "float32", 16, id="cast to 16 bits"),
        pytest.param(packed(kind="fp4"), FP32, "bfloat16", 28, id="fp4"),
        pytest.param(packed(Conv1D), FP32, "bfloat16", 18, id="lying across"),
    ],
)
def test_a_weight_that_is_quantised_on_a_cpu(
    layer: torch.nn.Module, compute: torch.dtype, stored: str | None, want: int
) -> None:
    work = bytes_beyond(layer, compute=compute, stored=stored, on_gpu=False)
    assert work == want * NUMBERS + OVERHEAD_BYTES


@pytest.mark.parametrize(
    ("layer", "want"),
    [
        pytest.param(packed(), 2 * NUMBERS, id="before it is quantised"),
        pytest.param(packed(Conv1D), 4 * NUMBERS, id="and lying across"),
    ],
)
def test_a_gpu_holds_the_weight_as_it_is_computed_with(layer: torch.nn.Module, want: int) -> None:
    assert bytes_beyond(layer, compute=BF16, stored="bfloat16", on_gpu=True) == want


@pytest.mark.parametrize(
    ("layer", "want"),
    [
        pytest.param(whole(64, 96), 0, id="a table is cast into its place"),
        pytest.param(whole(8, 64, 96), 4 * 8 * NUMBERS, id="a stack is there in pieces too"),
        pytest.param(torch.nn.Module(), 0, id="nothing"),
    ],
)
def test_what_is_not_quantised(layer: torch.nn.Module, want: int) -> None:
    assert bytes_beyond(layer, compute=FP32, stored="bfloat16", on_gpu=False) == want


def test_what_is_loaded_after_the_largest_work_is_not_there_with_it() -> None:
    """As GPT-2's embeddings, whose name comes after those of its layers."""

    def peak_of(**children: torch.nn.Module) -> int:
        return bytes_beyond(torch.nn.ModuleDict(children), compute=FP32, stored=None, on_gpu=False)

    work = 14 * NUMBERS
    before, after = whole(16, 96), whole(16, 96)
    assert peak_of(a=before, h=packed()) == work + OVERHEAD_BYTES
    assert peak_of(h=packed(), w=after) == work - 4 * 16 * 96 + OVERHEAD_BYTES
    assert peak_of(h=packed(), w=whole(640, 96)) == OVERHEAD_BYTES


def test_the_peak_is_at_the_largest_work() -> None:
    layers = torch.nn.ModuleList([packed(), packed(kind="fp4"), packed()])
    assert bytes_beyond(layers, compute=FP32, stored=None, on_gpu=False) == (
        28 * NUMBERS - NUMBERS // 2 + OVERHEAD_BYTES
    )
