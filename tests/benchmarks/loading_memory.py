"""How far the plan of loading a base is from what loading takes at its peak, on the CPU.

    .venv/bin/python -m tests.benchmarks.loading_memory [--only 0 3]

makes models of random weights in bfloat16, loads each in a process of its own with the heap held
tight, and prints a table and, last, one JSON object. Measured is anonymous memory over that of the
process after its imports, looked for every millisecond, and the weights that stay in the pages of
the file: other pages of it that were read belong to the kernel, which takes them back.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tests.benchmarks.memory import MODELS, QWEN, config_of, resident_bytes, write_model

MIB = 1 << 20
Found = TypeVar("Found")
SMALL, UNTIED = "smollm2 of 6 layers", "qwen2 of 6 layers, untied"
LOADED = {
    **MODELS,
    UNTIED: {**QWEN, "vocab_size": 65536, "tie_word_embeddings": False},
    "mixtral of 2 layers": {
        "kind": "MixtralConfig", "vocab_size": 32000, "hidden_size": 512,
        "intermediate_size": 1792, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 2, "num_local_experts": 8,
    },
}  # fmt: skip
CASES: list[dict[str, Any]] = [
    {"model": SMALL, "method": "lora"},
    {"model": SMALL, "method": "lora", "compute": "bfloat16"},
    {"model": SMALL, "method": "qlora"},
    {"model": SMALL, "method": "qlora", "compute": "bfloat16"},
    {"model": "smollm2-135m", "method": "qlora"},
    {"model": UNTIED, "method": "lora"},
    {"model": UNTIED, "method": "qlora"},
    {"model": UNTIED, "method": "qlora", "compute": "bfloat16"},
    {"model": UNTIED, "method": "qlora", "type": "fp4"},
    {"model": "gpt2 of 6 layers", "method": "qlora"},
    {"model": "mixtral of 2 layers", "method": "qlora"},
    {"model": "mixtral of 2 layers", "method": "lora"},
]


class Watch(threading.Thread):
    """Keeps the greatest anonymous memory until it is told to end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.001):
            self.peak = max(self.peak, resident_bytes("RssAnon"))

    def end(self) -> int:
        self._over.set()
        self.join()
        return max(self.peak, resident_bytes("RssAnon"))


def plan(case: dict[str, Any], folder: Path) -> dict[str, int]:
    """Bytes at the peak of loading and of a step of one short row, and what stays."""
    import torch

    from anneal_pipeline.memory.trace import Place, make_planner

    place = Place(
        compute=getattr(torch, case.get("compute", "float32")),
        in_4_bit=case["method"] == "qlora",
        on_gpu=False,
    )
    planned = make_planner(config_of(case), folder=folder, place=place).plan(rows=1, length=64)
    stays = planned.weights + planned.quantization_state
    return {"loading": planned.loading, "step": planned.step, "stays": stays}


def measure(case: dict[str, Any], folder: Path) -> dict[str, int]:
    """Bytes; run it in a process of its own."""
    import torch

    from anneal_pipeline.memory.allocator import return_freed_blocks
    from anneal_pipeline.model.four_bit import choose_base_form
    from anneal_pipeline.model.loading import load_base

    config, cpu = config_of(case), torch.device("cpu")
    compute = getattr(torch, case.get("compute", "float32"))
    form = choose_base_form(config.tuning, device=cpu)
    assert return_freed_blocks()
    before, watch = resident_bytes("RssAnon"), Watch()
    watch.start()
    base = load_base(config, folder=folder, device=cpu, compute=compute, form=form)
    peak, after = watch.end(), resident_bytes("RssAnon")
    in_file = bytes_in_files(base)
    return {"peak": peak - before + in_file, "stays": after - before + in_file}


def bytes_in_files(model: Any) -> int:
    """Of the parameters that lie in mapped pages of weight files."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ends = [line[0].split("-") for line in lines if line[-1].endswith(".safetensors")]
    ranges = [(int(begin, 16), int(end, 16)) for begin, end in ends]
    return sum(
        parameter.nbytes
        for parameter in model.parameters()
        if any(begin <= parameter.data_ptr() < end for begin, end in ranges)
    )


def apart(work: Callable[..., Found], *arguments: Any) -> Found:
    """Do it in a process of its own, begun as a copy of one that has imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anneal_pipeline.stages", "anneal_pipeline.model.quantization"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def row_of(case: dict[str, Any], planned: dict[str, int], measured: dict[str, int]) -> str:
    kind = f"{case['method']}, {case.get('compute', 'float32')}"
    kind += f", {case['type']}" if "type" in case else ""
    return (
        f"| {case['model']} | {kind} | {planned['loading'] / MIB:.0f} | "
        f"{measured['peak'] / MIB:.0f} | {planned['loading'] / measured['peak'] - 1:+.1%} | "
        f"{planned['stays'] / MIB:.0f} | {measured['stays'] / MIB:.0f} | "
        f"{planned['step'] / MIB:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, from 0")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    print(
        "| model | base | planned MiB | measured MiB | error | planned to stay | stayed | "
        "planned step of 1 x 64 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    errors = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in options.only or range(len(CASES)):
            case = CASES[number]
            folder = Path(scratch) / re.sub(r"\W+", "-", case["model"])
            if not (folder / "config.json").exists():
                apart(write_model, folder, LOADED[case["model"]])
            planned, measured = apart(plan, case, folder), apart(measure, case, folder)
            errors.append(abs(planned["loading"] / measured["peak"] - 1))
            print(row_of(case, planned, measured), flush=True)
    print(json.dumps({"cases": len(errors), "largestError": round(max(errors), 4)}))


if __name__ == "__main__":
    main()
