"""How far the memory plan is from the measured peak of training steps, on the CPU.

    .venv/bin/python tests/benchmarks/memory.py [--only 0 3]

makes models of random weights, trains each configuration for two steps in a process of its own with
the heap held tight, and prints a table and, last, one JSON object. Measured is the greatest
resident set during the steps over that of the process after its imports; `corrected` is the plan
after one pass of the same rows was measured, as a run that is short of memory does it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
MIB = 1 << 20

SMOL = {
    "kind": "LlamaConfig", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}  # fmt: skip
QWEN = {
    "kind": "Qwen2Config", "vocab_size": 32000, "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 6, "num_attention_heads": 14, "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
NEOX = {
    "kind": "GPTNeoXConfig", "vocab_size": 50304, "hidden_size": 512, "intermediate_size": 2048,
    "num_hidden_layers": 6, "num_attention_heads": 8,
}  # fmt: skip
SMALL = {**SMOL, "num_hidden_layers": 6}
MODELS = {
    "smollm2-135m": SMOL,
    "smollm2 of 6 layers": SMALL,
    "qwen2 of 6 layers": QWEN,
    "pythia-70m": NEOX,
    "gpt2 of 6 layers": {"kind": "GPT2Config", "n_layer": 6},
}

CASES: list[dict[str, Any]] = [
    {"model": "smollm2-135m", "method": "qlora", "rows": 1, "length": 512},
    {"model": "smollm2 of 6 layers", "method": "lora", "rows": 4, "length": 512},
    {"model": "smollm2 of 6 layers", "method": "qlora", "rows": 4, "length": 512},
    {"model": "smollm2 of 6 layers", "method": "lora", "rows": 4, "length": 128,
     "checkpointing": False},
    {"model": "pythia-70m", "method": "lora", "rows": 4, "length": 128, "checkpointing": False},
    {"model": "gpt2 of 6 layers", "method": "qlora", "rows": 1, "length": 512},
    {"model": "qwen2 of 6 layers", "method": "qlora", "rows": 4, "length": 128},
    {"model": "smollm2 of 6 layers", "method": "lora", "rows": 4, "length": 128,
     "compute": "bfloat16", "checkpointing": False},
    {"model": "qwen2 of 6 layers", "method": "lora", "rows": 1, "length": 512,
     "checkpointing": False},
    {"model": "smollm2-135m", "method": "lora", "rows": 8, "length": 128},
    {"model": "smollm2 of 6 layers", "method": "lora", "rows": 1, "length": 2048},
]  # fmt: skip


def config_of(case: dict[str, Any]) -> Any:
    from anneal_pipeline.config.pipeline import PipelineConfig

    return PipelineConfig.parse(
        {
            "model": {"uri": case["model"]},
            "dataset": {"uri": "rows.jsonl"},
            "tuning": {
                "method": case["method"],
                "quantization": {
                    "computeDtype": case.get("compute", "float32"),
                    "type": case.get("type", "nf4"),
                },
            },
            "training": {"gradientCheckpointing": case.get("checkpointing", True)},
        }
    )


def write_model(folder: Path, arguments: dict[str, Any]) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    fields = {key: value for key, value in arguments.items() if key != "kind"}
    config = getattr(transformers, arguments["kind"])(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def plan(case: dict[str, Any], folder: Path) -> dict[str, int]:
    import torch

    from anneal_pipeline.memory.trace import Place, make_planner

    place = Place(
        compute=getattr(torch, case.get("compute", "float32")),
        in_4_bit=case["method"] == "qlora",
        on_gpu=False,
    )
    planner = make_planner(config_of(case), folder=folder, place=place)
    planned = planner.plan(rows=case["rows"], length=case["length"])
    return {**planned.parts(), "peak": planned.peak, "pass": planned.of_pass}


def measure(case: dict[str, Any], folder: Path) -> dict[str, int]:
    """Bytes: the peak of two steps above the imports, and what one pass takes by itself."""
    import torch

    from anneal_pipeline.memory.allocator import return_freed_blocks
    from anneal_pipeline.memory.trial import measure_pass
    from anneal_pipeline.model.four_bit import choose_base_form
    from anneal_pipeline.model.loading import load_tuned_model
    from anneal_pipeline.training.batches import Batch
    from anneal_pipeline.training.loss import LogitsPath
    from anneal_pipeline.training.optimizer import AdapterOptimizer
    from anneal_pipeline.training.ranks import Ranks

    config, device = config_of(case), torch.device("cpu")
    form = choose_base_form(config.tuning, device=device)
    assert return_freed_blocks()
    before = resident_bytes("VmRSS")
    tuned = load_tuned_model(config, folder=folder, device=device, form=form)
    optimizer = AdapterOptimizer(
        config.training,
        model=tuned.model,
        compute=tuned.compute,
        ranks=Ranks(rank=0, world_size=1, device=device),
    )
    path = LogitsPath(tuned.model)
    tuned.model.train()
    ids = torch.randint(5, 200, (case["rows"], case["length"]))
    batch = Batch(ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    of_pass = measure_pass(path, batch, model=tuned.model)
    assert of_pass is not None
    # What loading left behind is not the steps' to answer for.
    Path("/proc/self/clear_refs").write_text("5")
    for step in (1, 2):
        optimizer.step(path, [batch], learning_rate=1e-4, step=step)
    return {"peak": resident_bytes("VmHWM") - before, "pass": of_pass}


def resident_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure_apart(case: dict[str, Any], folder: Path) -> dict[str, int]:
    """Run `measure` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--case", json.dumps(case), "--folder", folder],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(case: dict[str, Any], folders: Path) -> dict[str, Any]:
    """Bytes planned and measured, and the error of the plan as a share."""
    folder = folders / case["model"].replace(" ", "-")
    if not (folder / "config.json").exists():
        write_model(folder, MODELS[case["model"]])
    planned = plan(case, folder)
    measured = measure_apart(case, folder)
    corrected = planned["peak"] - planned["pass"] + measured["pass"]
    return {
        "planned": planned["peak"],
        "corrected": corrected,
        "measured": measured["peak"],
        "error": planned["peak"] / measured["peak"] - 1,
        "correctedError": corrected / measured["peak"] - 1,
        "parts": planned,
    }


def row_of(case: dict[str, Any], found: dict[str, Any]) -> str:
    kept = "recomputed" if case.get("checkpointing", True) else "kept"
    return (
        f"| {case['model']} | {case['method']}, {case.get('compute', 'float32')} | "
        f"{case['rows']} x {case['length']} | {kept} | {found['planned'] / MIB:.0f} | "
        f"{found['measured'] / MIB:.0f} | {found['error']:+.1%} | {found['correctedError']:+.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, from 0")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(json.loads(options.case), options.folder)))
        return
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    print(
        "| model | base | rows x tokens | activations | planned MiB | measured MiB | error "
        "| corrected |"
    )
    print("|---|---|---|---|---|---|---|---|")
    errors = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in options.only or range(len(CASES)):
            found = compare(CASES[number], Path(scratch))
            errors.append(abs(found["error"]))
            print(row_of(CASES[number], found), flush=True)
    print(json.dumps({"cases": len(errors), "largestError": round(max(errors), 4)}))


if __name__ == "__main__":
    main()
