"""What QLoRA of 7B, 13B and 30B models needs on a GPU, by the memory plan, without their weights.

    .venv/bin/python tests/benchmarks/large_models.py [--only 7B]

writes a config.json of each shape (Llama's), plans one rank on a GPU in bfloat16 at the defaults
(rank 16, all linear layers, double quantisation, recomputed activations) and prints a table and,
last, one JSON object. Nothing is loaded and no GPU is needed. Planning takes a minute of processor
time for each model. Full fine-tuning is arithmetic: weight, gradient and the two moments of AdamW
in 16 bits, without activations, which is the least of what the specification names.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.efficiency.inventory import FULL_TUNING_BYTES
from anneal_pipeline.memory.plan import MemoryPlan
from anneal_pipeline.memory.trace import Place, Planner, make_planner

GIB = 1 << 30
ON_GPU = Place(compute=torch.bfloat16, in_4_bit=True, on_gpu=True)
LENGTHS = (512, 2048)
LIMITS = {"7B": 16 * GIB, "13B": 24 * GIB, "30B": 64 * GIB}
"""What the specification has each fit into."""
SHAPES = {
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "13B": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "30B": {
        "hidden_size": 6656,
        "intermediate_size": 17920,
        "num_hidden_layers": 60,
        "num_attention_heads": 52,
    },
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Parameters."""

    base: int
    trainable: int


def planner_of(
    name: str, *, folder: Path, layers: int | None = None, **sections: dict[str, Any]
) -> Planner:
    """The planner of a shape, with another number of layers where that is asked for."""
    shape = SHAPES[name] if layers is None else {**SHAPES[name], "num_hidden_layers": layers}
    LlamaConfig(
        vocab_size=32000, max_position_embeddings=4096, tie_word_embeddings=False, **shape
    ).save_pretrained(folder)
    config = PipelineConfig.parse({"model": {"uri": "m"}, "dataset": {"uri": "d"}, **sections})
    return make_planner(config, folder=folder, place=ON_GPU)


def sizes_of(planner: Planner) -> Sizes:
    base = trainable = 0
    for parameter in planner.skeleton.model.parameters():
        state = getattr(parameter, "quant_state", None)
        if parameter.requires_grad:
            trainable += parameter.numel()
        else:
            base += parameter.numel() if state is None else state.shape.numel()
    return Sizes(base=base, trainable=trainable)


def loaded_bytes(plan: MemoryPlan) -> int:
    """What there is once the model is loaded and has its adapters."""
    return plan.weights + plan.quantization_state + plan.adapters


def row_of(name: str, *, length: int, plan: MemoryPlan, sizes: Sizes) -> str:
    full = FULL_TUNING_BYTES * sizes.base
    return (
        f"| {name} | {sizes.base / 1e9:.2f} | {sizes.trainable / sizes.base:.2%} | "
        f"{loaded_bytes(plan) / GIB:.2f} | 1 x {length} | {plan.peak / GIB:.2f} | "
        f"{full / GIB:.0f} | -{1 - plan.peak / full:.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SHAPES, help="one of them")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}")
    print(
        "| model | parameters (billions) | trained | loaded GiB | rows x tokens | peak GiB | "
        "full fine-tuning GiB | saved |"
    )
    print("|---|---|---|---|---|---|---|---|")
    peaks: dict[str, float] = {}
    for name in [options.only] if options.only else SHAPES:
        with tempfile.TemporaryDirectory() as scratch:
            planner = planner_of(name, folder=Path(scratch))
            sizes = sizes_of(planner)
            for length in LENGTHS:
                plan = planner.plan(rows=1, length=length)
                peaks[f"{name} 1x{length}"] = round(plan.peak / GIB, 2)
                print(row_of(name, length=length, plan=plan, sizes=sizes), flush=True)
    print(json.dumps(peaks))


if __name__ == "__main__":
    main()
