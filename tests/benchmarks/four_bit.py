"""What holding the base in 4 bits costs in time and words, with and without double quantisation.

    .venv/bin/python tests/benchmarks/four_bit.py --model FOLDER [--rows 4] [--no-answers]

loads a model whole and in 4 bits, on the CPU in fp32, and prints a table (bytes of the weights,
processor time of a forward and of a forward and backward pass, loss on a fixed text), the greedy
answers to fixed prompts side by side and, last, one JSON object. Passes go by turns and the least
of them counts, so that other work on the machine falls on all; on one thread, because threads that
wait for each other on a loaded machine take processor time. FOLDER has a chat model's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20
KINDS: dict[str, dict[str, Any]] = {
    "whole": {"method": "lora"},
    "nf4": {"method": "qlora", "quantization": {"doubleQuant": False}},
    "nf4, double": {"method": "qlora", "quantization": {"doubleQuant": True}},
}
PROMPTS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
)
TEXT = (
    "The lighthouse stood at the end of a narrow road. Every evening the keeper climbed the "
    "stairs, lit the lamp and wrote the weather into a book. When ships passed by at night, their "
    "crews knew by its light how far it was to the harbour, and where the rocks were that nobody "
    "could see. In winter, when storms came from the north, he stayed awake until the morning."
)
NEW_TOKENS = 32


def load(kind: str, folder: Path) -> Any:
    from anneal_pipeline.config.pipeline import PipelineConfig
    from anneal_pipeline.model.loading import load_tuned_model

    tuning = json.loads(json.dumps(KINDS[kind]))
    tuning.setdefault("quantization", {})["computeDtype"] = "float32"
    config = PipelineConfig.parse(
        {
            "model": {"uri": str(folder)},
            "dataset": {"uri": "d"},
            "tuning": {**tuning, "lora": {"dropout": 0.0}},
            "training": {"gradientCheckpointing": False},
        }
    )
    return load_tuned_model(config, folder=folder, device=torch.device("cpu")).model


def forward(model: Any, ids: torch.Tensor) -> None:
    with torch.no_grad():
        model(input_ids=ids)


def forward_and_backward(model: Any, ids: torch.Tensor) -> None:
    model(input_ids=ids, labels=ids).loss.backward()


def cpu_seconds(act: Any, *arguments: Any) -> float:
    began = time.process_time()
    act(*arguments)
    return time.process_time() - began


def loss_of(model: Any, tokenizer: Any) -> float:
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def answers_of(model: Any, tokenizer: Any) -> list[str]:
    found = []
    for prompt in PROMPTS:
        given = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.no_grad():
            out = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = out[0, given["input_ids"].shape[1] :]
        found.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a chat model")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-answers", action="store_true", help="times, sizes and loss alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from anneal_pipeline.model.adapters import base_bytes
    from anneal_pipeline.model.loading import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    models = {kind: load(kind, options.model) for kind in KINDS}
    ids = torch.randint(5, 200, (options.rows, options.length))
    times: dict[str, list[list[float]]] = {kind: [[], []] for kind in KINDS}
    for run in range(options.runs + 1):
        for kind, model in models.items():
            for found, act in zip(times[kind], (forward, forward_and_backward), strict=True):
                seconds = cpu_seconds(act, model, ids)
                if run:  # the first one warms up
                    found.append(seconds)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {options.rows} rows of "
          f"{options.length} tokens, on one thread")  # fmt: skip
    print("| base | weights MiB | forward CPU s | forward and backward CPU s | loss on text |")
    print("|---|---|---|---|---|")
    facts: dict[str, dict[str, float]] = {}
    for kind, model in models.items():
        model.eval()
        one, both = (min(found) for found in times[kind])
        size, loss = base_bytes(model), loss_of(model, tokenizer)
        facts[kind] = {"bytes": size, "forward": one, "both": both, "loss": round(loss, 4)}
        print(f"| {kind} | {size / MIB:.1f} | {one:.2f} | {both:.2f} | {loss:.4f} |")
    answering = {} if options.no_answers else models
    for index, texts in enumerate(zip(*(answers_of(m, tokenizer) for m in answering.values()),
                                      strict=True)):  # fmt: skip
        print(f"\n{PROMPTS[index]}")
        for kind, text in zip(models, texts, strict=True):
            print(f"  {kind}: {text!r}")
    plain, double = facts["nf4"], facts["nf4, double"]
    print(json.dumps({key: round(double[key] / plain[key], 4) for key in ("bytes", "forward",
                                                                        "both")}))  # fmt: skip


if __name__ == "__main__":
    main()
