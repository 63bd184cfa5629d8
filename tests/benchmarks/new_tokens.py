"""What new tokens cost a training step: ours, against PEFT's own layer and against none.

    .venv/bin/python tests/benchmarks/new_tokens.py --model FOLDER

takes three steps of LoRA over a real base (SmolLM2-135M, whose embeddings and head are one table of
49,152 rows), each subject in a process of its own: without new tokens, with them as a job trains
them (`trained_rows`), and with PEFT's `TrainableTokensLayer`, which computes the gradient of the
whole table. Prints a JSON object for each, the first step not counted, and one with the ratios of
ours over each peer. Peak memory is the kernel's high-water mark during the steps above what was
resident before them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.model.loading import load_tuned_model
from anneal_pipeline.model.trained_rows import TrainedRows
from anneal_pipeline.training.batches import Batch
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.ranks import Ranks

CACHE = Path(os.environ.get("ANNEAL_CACHE", Path.home() / ".cache/anneal"))
SUBJECTS = ("none", "ours", "peft")
STEPS = 3


def measure(subject: str, *, model: Path, rows: int, length: int, tokens: int) -> dict[str, Any]:
    names = [f"<new-{n}>" for n in range(tokens)]
    tuning: dict[str, Any] = {"method": "lora", "quantization": {"computeDtype": "float32"}}
    if subject != "none":
        tuning["newTokens"] = names
    config = PipelineConfig.parse(
        {"model": {"uri": str(model)}, "dataset": {"uri": "rows.jsonl"}, "tuning": tuning}
    )
    device = torch.device("cpu")
    tuned = load_tuned_model(config, folder=model, device=device)
    if subject == "peft":
        for module in tuned.model.modules():
            if type(module) is TrainedRows:
                module.__class__ = TrainableTokensLayer
    tuned.model.train()
    path = LogitsPath(tuned.model)
    optimizer = AdapterOptimizer(
        config.training,
        model=tuned.model,
        compute=tuned.compute,
        ranks=Ranks(rank=0, world_size=1, device=device),
    )
    ids = torch.randint(49_000, (rows, length), generator=torch.Generator().manual_seed(1))
    if subject != "none":
        first = tuned.model.get_input_embeddings().weight.shape[0] - tokens
        ids[:, ::8] = first + torch.arange(ids[:, ::8].numel()).view(rows, -1) % tokens
    batch = Batch(ids=ids, attention_mask=torch.ones_like(ids), labels=ids.clone())
    Path("/proc/self/clear_refs").write_text("5")
    before, seconds = status("VmRSS"), 0.0
    for step in range(1, STEPS + 1):
        began = time.process_time()
        outcome = optimizer.step(path, [batch], learning_rate=1e-4, step=step)
        seconds += time.process_time() - began if step > 1 else 0.0
    return {
        "subject": subject,
        "trainable": tuned.num_trainable,
        "loss": round(outcome.loss, 5),
        "processorSecondsPerStep": round(seconds / (STEPS - 1), 2),
        "peakMiB": round(status("VmHWM") - before),
    }


def status(name: str) -> float:
    """A size of this process by the kernel, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=CACHE / "models/smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens a row")
    parser.add_argument("--tokens", type=int, default=16, help="new ones; an eighth of all")
    parser.add_argument("--subject", choices=SUBJECTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subject:
        sizes = {"rows": options.rows, "length": options.length, "tokens": options.tokens}
        print(json.dumps(measure(options.subject, model=options.model, **sizes)))
        return
    found = {}
    for subject in SUBJECTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--subject", subject]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[subject] = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps(found[subject]), flush=True)
    print(
        json.dumps(
            {
                f"{key}Over{peer.capitalize()}": round(found["ours"][key] / found[peer][key], 3)
                for key in ("processorSecondsPerStep", "peakMiB")
                for peer in ("none", "peft")
            }
        )
    )


if __name__ == "__main__":
    main()
