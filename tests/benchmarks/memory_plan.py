"""How far the memory plan is from the measured peak of training steps, on the CPU.

    .venv/bin/python tests/benchmarks/memory_plan.py

makes models of random weights, trains each configuration for two steps in a process of its own, and
prints a table and, last, one JSON object. Measured is the greatest resident set during the steps
over that of the process before the model was loaded, with every library warm.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
MIB = 1 << 20
LIMIT = 0.15

SMOL = {
    "kind": "LlamaConfig", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}  # fmt: skip
QWEN = {
    "kind": "Qwen2Config", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
GPT2 = {"kind": "GPT2Config"}
NEOX = {
    "kind": "GPTNeoXConfig", "vocab_size": 50304, "hidden_size": 512, "intermediate_size": 2048,
    "num_hidden_layers": 6, "num_attention_heads": 8,
}  # fmt: skip
MODELS = {"smollm2-135m": SMOL, "qwen2-0.5b": QWEN, "gpt2": GPT2, "pythia-70m": NEOX}

CASES: list[dict[str, Any]] = [
    {"model": "smollm2-135m", "method": "qlora", "micro": 1, "length": 512},
    {"model": "smollm2-135m", "method": "qlora", "micro": 4, "length": 512},
    {"model": "smollm2-135m", "method": "qlora", "micro": 2, "length": 512, "checkpointing": False},
    {"model": "smollm2-135m", "method": "lora", "micro": 2, "length": 1024},
    {"model": "smollm2-135m", "method": "lora", "micro": 2, "length": 256, "checkpointing": False,
     "lora": {"rank": 64, "dropout": 0.0}},
    {"model": "smollm2-135m", "method": "qlora", "micro": 2, "length": 256, "checkpointing": False,
     "lora": {"useDora": True}},
    {"model": "qwen2-0.5b", "method": "qlora", "micro": 1, "length": 512},
    {"model": "gpt2", "method": "lora", "micro": 2, "length": 512, "checkpointing": False},
    {"model": "pythia-70m", "method": "lora", "micro": 4, "length": 512},
]  # fmt: skip


def config_of(case: dict[str, Any]) -> Any:
    from anneal_pipeline.config.pipeline import PipelineConfig

    return PipelineConfig.parse(
        {
            "model": {"uri": case["model"]},
            "dataset": {"uri": "rows.jsonl"},
            "tuning": {"method": case["method"], "lora": case.get("lora", {})},
            "training": {
                "gradientCheckpointing": case.get("checkpointing", True),
                "microBatchSize": case["micro"],
            },
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


def measure(case: dict[str, Any], folders: Path) -> dict[str, float]:
    """Bytes planned and measured; runs in its own process."""
    import torch

    from anneal_pipeline.memory.plan import Setting, plan_memory
    from anneal_pipeline.memory.shape import read_shape

    config = config_of(case)
    train(config_of({**case, "micro": 1, "length": 16}), folders / "warm", micro=1, length=16)
    folder = folders / case["model"]
    plan = plan_memory(
        read_shape(folder),
        Setting(
            lora=config.tuning.lora,
            in_4_bit=config.tuning.method == "qlora",
            double_quant=config.tuning.quantization.double_quant,
            compute="float32",
            checkpointing=config.training.gradient_checkpointing,
            on_gpu=False,
            micro_batch_size=case["micro"],
            length=case["length"],
        ),
    )
    before = resident_bytes("VmRSS")
    train(config, folder, micro=case["micro"], length=case["length"])
    peak = resident_bytes("VmHWM") - before
    return {"planned": plan.total, "measured": peak, "threads": torch.get_num_threads()} | {
        f"plan {key}": value for key, value in plan.parts().items()
    }


def train(config: Any, folder: Path, *, micro: int, length: int) -> None:
    import torch

    from anneal_pipeline.model.loading import load_tuned_model
    from anneal_pipeline.training.batches import Batch
    from anneal_pipeline.training.loss import LogitsPath
    from anneal_pipeline.training.optimizer import AdapterOptimizer
    from anneal_pipeline.training.ranks import Ranks

    device = torch.device("cpu")
    tuned = load_tuned_model(config, folder=folder, device=device)
    optimizer = AdapterOptimizer(
        config.training,
        model=tuned.model,
        compute=tuned.compute,
        ranks=Ranks(rank=0, world_size=1, device=device),
    )
    path = LogitsPath(tuned.model)
    tuned.model.train()
    ids = torch.randint(5, 200, (micro, length))
    batch = Batch(ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    # What loading left behind is not the steps' to answer for.
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        optimizer.step(path, [batch], learning_rate=1e-4)


def resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, from 0")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folders", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(CASES[options.one], options.folders)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = options.folders or Path(scratch)
        print(platform.processor() or platform.machine(), platform.python_version())
        errors = [run_case(n, folders) for n in options.only or range(len(CASES))]
    print(json.dumps({"cases": len(errors), "largestError": round(max(errors), 4)}))


def run_case(number: int, folders: Path) -> float:
    case = CASES[number]
    needed = {case["model"]: MODELS[case["model"]], "warm": {**SMOL, "num_hidden_layers": 1}}
    for name, arguments in needed.items():
        if not (folders / name / "config.json").exists():
            write_model(folders / name, arguments)
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(number), "--folders", str(folders)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    error = found["planned"] / found["measured"] - 1
    checkpointing = "recomputed" if case.get("checkpointing", True) else "kept"
    print(
        f"| {case['model']} | {case['method']} {json.dumps(case.get('lora', {}))} | "
        f"{case['micro']} x {case['length']} | {checkpointing} | "
        f"{found['planned'] / MIB:.0f} | {found['measured'] / MIB:.0f} | {error:+.1%} |",
        flush=True,
    )
    parts = ", ".join(f"{k[5:]} {v / MIB:.0f}" for k, v in found.items() if k.startswith("plan "))
    print(f"    {parts}", flush=True)
    return abs(error)


if __name__ == "__main__":
    main()
