"""This loop against TRL's `SFTTrainer`: same model, rows, lengths, batch and LoRA configuration.

    make bench-training                      # a few minutes on two cores
    .venv/bin/python tests/benchmarks/training.py --help

Each run is a process of its own, the sides by turns (A B A B), medians over the runs. The last line
is one JSON object: `tokensPerSecondRatio`, `peakMemoryRatio`, `lossDifference`, ours over TRL's (of
the loss: ours less TRL's, in nats per token of held-out rows).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("ANNEAL_CACHE", Path.home() / ".cache/anneal"))
SMOLLM2 = CACHE / "models/smollm2-135m-instruct"
LEARNING_RATE = 2e-4

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {
        "says": "LoRA over a bfloat16 base, products in bfloat16, gradient checkpointing: TRL's "
        "defaults",
        "method": "lora",
        "ours": {"computeDtype": "bfloat16", "training": {"gradientCheckpointing": True}},
        "trl": {},
    },
    "fast": {
        "says": "the first with what TRL documents for speed and has an effect on this device",
        "method": "lora",
        "ours": {"computeDtype": "bfloat16", "training": {"gradientCheckpointing": False}},
        "trl": {
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
        },
    },
    "liger": {
        "says": "the same, and TRL with Liger's Triton kernels: every speed option it documents",
        "method": "lora",
        "needs": "cuda",
        "ours": {"computeDtype": "bfloat16", "training": {"gradientCheckpointing": False}},
        "trl": {
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
            "use_liger_kernel": True,
        },
    },
    "packed": {
        "says": "rows packed into sequences on both sides, no gradient checkpointing",
        "method": "lora",
        "ours": {
            "computeDtype": "bfloat16",
            "training": {"gradientCheckpointing": False, "packing": True},
        },
        "trl": {"gradient_checkpointing": False, "packing": True},
    },
    "fp32": {
        "says": "LoRA over a float32 base, products in float32: our default on a CPU",
        "method": "lora",
        "ours": {"computeDtype": "float32", "training": {"gradientCheckpointing": True}},
        "trl": {"bf16": False, "model_init_kwargs": {"dtype": "float32"}},
    },
    "qlora": {
        "says": "NF4 with double quantisation; ours computes in float32, its default on a CPU, "
        "TRL in bfloat16, its default",
        "method": "qlora",
        "ours": {"computeDtype": "auto", "training": {"gradientCheckpointing": True}},
        "trl": {},
    },
    "qlora-bfloat16": {
        "says": "the same with products in bfloat16 on both sides",
        "method": "qlora",
        "ours": {"computeDtype": "bfloat16", "training": {"gradientCheckpointing": True}},
        "trl": {},
    },
}


def main() -> int:
    options = _parser().parse_args()
    if "trl" in options.sides and options.trl_python is None:
        raise SystemExit("--trl-python is missing: make bench-training sets it")
    device = _device(options.device)
    if (needed := VARIANTS[options.variant].get("needs", device)) != device:
        raise SystemExit(f"--variant {options.variant} runs on {needed} only, and this is {device}")
    with tempfile.TemporaryDirectory(prefix="bench-training-") as scratch:
        task = _task(options, device=device, folder=Path(scratch))
        found = _alternate(task, options, folder=Path(scratch))
    summary = summarise(found)
    if options.output:
        options.output.write_text(json.dumps({"task": task, "runs": found, **summary}, indent=2))
    print(json.dumps(summary))
    return 0


def summarise(found: dict[str, list[dict[str, Any]]]) -> dict[str, float | None]:
    """The three figures the goal is stated in, of medians; None where one side did not run."""
    if not found.get("ours") or not found.get("trl"):
        return dict.fromkeys(("tokensPerSecondRatio", "peakMemoryRatio", "lossDifference"))

    def median(side: str, name: str) -> float:
        return statistics.median(run[name] for run in found[side])

    speed = median("ours", "tokens_per_second") / median("trl", "tokens_per_second")
    return {
        "tokensPerSecondRatio": round(speed, 3),
        "peakMemoryRatio": round(median("ours", "peak_mib") / median("trl", "peak_mib"), 3),
        "lossDifference": round(median("ours", "loss") - median("trl", "loss"), 4),
    }


def _alternate(
    task: dict[str, Any], options: argparse.Namespace, *, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    sides = {
        "ours": (Path(sys.executable), HERE / "training_ours.py"),
        "trl": (options.trl_python, HERE / "training_trl.py"),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides if name in options.sides}
    for number in range(1, options.runs + 1):
        for name in found:
            began = time.monotonic()
            # Another seed each, so that the losses show their own spread.
            seeded = {**task, "seed": task["seed"] + number}
            run = _run(*sides[name], task=seeded, folder=folder / f"{name}-{number}")
            found[name].append(run)
            print(
                f"run {number} {name:4}: {run['tokens_per_second']:.1f} tokens/s "
                f"({run['tokens_per_cpu_second']:.1f} per CPU second), peak "
                f"{run['peak_mib']:.0f} MiB, held-out loss {run['loss']:.4f}; "
                f"{time.monotonic() - began:.0f} s in all",
                flush=True,
            )
    return found


def _run(python: Path, script: Path, *, task: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    result, log = folder / "result.json", folder / "log.txt"
    (folder / "task.json").write_text(json.dumps({**task, "result": str(result)}))
    with log.open("w") as file:
        done = subprocess.run(
            [python, script, folder / "task.json"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")},
            check=False,
        )
    if done.returncode != 0:
        print(log.read_text()[-4000:], file=sys.stderr)
        raise SystemExit(f"{script.name} ended with exit code {done.returncode}")
    measured: dict[str, Any] = json.loads(result.read_text())
    return measured


def _task(options: argparse.Namespace, *, device: str, folder: Path) -> dict[str, Any]:
    """What both sides are told, with the prepared rows below `folder`."""
    from training_inputs import SHAPES, prepare, write_model, write_tokens
    from training_meter import IGNORED
    from training_ours import config_of

    model = Path(options.model or (SMOLLM2 if device == "cpu" else "llama-1b"))
    if str(model) in SHAPES:
        model = write_model(folder / "model", shape=str(model), tokenizer=options.tokenizer)
    variant = VARIANTS[options.variant]
    task = {
        "variant": options.variant,
        "device": device,
        "model": str(model),
        "method": variant["method"],
        "ours": variant["ours"],
        "trl": variant["trl"],
        "lora": {
            "r": options.rank,
            "lora_alpha": 2 * options.rank,
            "lora_dropout": options.dropout,
        },
        "steps": options.steps,
        "warmupSteps": options.warmup_steps,
        "batchSize": options.batch_size,
        "microBatchSize": options.micro_batch_size,
        "sequenceLength": options.sequence_length,
        "learningRate": LEARNING_RATE,
        "seed": options.seed,
        "prepared": str(folder / "rows/data"),
        "train": str(folder / "train.json"),
        "heldOut": str(folder / "held-out.json"),
    }
    data = prepare(
        folder / "rows",
        config_of(task),
        model=model,
        num_train=options.rows or options.steps * options.batch_size,
        num_held_out=options.held_out,
    )
    write_tokens(data.train, Path(task["train"]), ignored=IGNORED)
    write_tokens(data.splits["validation"], Path(task["heldOut"]), ignored=IGNORED)
    lengths = data.train.lengths()
    print(
        f"{options.variant}: {variant['says']}\n{len(lengths)} rows of {min(lengths)} to "
        f"{max(lengths)} tokens, {statistics.mean(lengths):.0f} on average; {options.steps} steps "
        f"of {options.batch_size} rows in micro-batches of {options.micro_batch_size}, the first "
        f"{options.warmup_steps} not timed; {model.name} on {device}",
        flush=True,
    )
    return task


def _device(wanted: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--trl-python", type=Path, help="the interpreter of TRL's environment")
    add("--sides", nargs="+", choices=("ours", "trl"), default=("ours", "trl"))
    add("--variant", choices=VARIANTS, default="default")
    add("--runs", type=int, default=2, help="runs of each side (default: %(default)s)")
    add("--seed", type=int, default=0, help="added to the number of each run")
    add("--steps", type=int, default=10, help="optimiser steps of a run (default: %(default)s)")
    add("--warmup-steps", type=int, default=2, help="not timed (default: %(default)s)")
    add("--rows", type=int, help="training rows (default: one epoch)")
    add("--held-out", type=int, default=32, help="rows of the loss (default: %(default)s)")
    add("--batch-size", type=int, default=16)
    add("--micro-batch-size", type=int, default=8)
    add("--sequence-length", type=int, default=512)
    add("--rank", type=int, default=16)
    add("--dropout", type=float, default=0.0)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add(
        "--model",
        help="a model folder, or llama-1b, llama-3b or llama-8b for random weights "
        "(default: SmolLM2-135M on a CPU, llama-1b on a GPU)",
    )
    add("--tokenizer", type=Path, default=SMOLLM2, help="of a random model (default: SmolLM2's)")
    add("--output", type=Path, help="write everything measured to this JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
