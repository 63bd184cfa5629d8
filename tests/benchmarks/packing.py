"""How fast packed rows are trained against the same rows unpacked.

    .venv/bin/python tests/benchmarks/packing.py --rows 96 --sequence-length 1024

trains LoRA adapters on a random model of SmolLM2-135M's shape over rows with the lengths of a chat
dataset: unpacked in length-grouped batches, then packed, each in a process of its own and with
about as many tokens per forward pass on average. Prints a JSON object for each and one with the
ratios of packed over unpacked. On a machine that others use as well, go by the processor seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.model.loading import load_tuned_model
from anneal_pipeline.training.batches import collate, collate_packed, micro_batches
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.sequences import StepSequences

VOCABULARY = 49_152
TOKENS_AT_ONCE = 2048
"""Per forward pass, about: so many rows of mean length, or so many sequences."""


def write_model(folder: Path, *, num_layers: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=num_layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def make_split(num_rows: int, *, longest: int) -> PreparedSplit:
    """Rows of about 200 tokens, few of them long; the second half of each is trained."""
    draw = random.Random(1)
    drawn = (int(draw.lognormvariate(5.0, 0.8)) for _ in range(num_rows))
    lengths = [min(longest, max(8, length)) for length in drawn]
    generator = torch.Generator().manual_seed(1)
    return PreparedSplit(
        ids=torch.randint(VOCABULARY, (sum(lengths),), generator=generator, dtype=torch.int32),
        is_response=torch.tensor(
            [int(2 * i >= n) for n in lengths for i in range(n)], dtype=torch.uint8
        ),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
    )


def measure(folder: Path, *, num_rows: int, sequence_length: int, packing: bool) -> dict[str, Any]:
    split = make_split(num_rows, longest=sequence_length)
    mean = len(split.ids) / num_rows
    at_once = max(1, round(TOKENS_AT_ONCE / (sequence_length if packing else mean)))
    training = {"sequenceLength": sequence_length, "packing": packing, "batchSize": 65536}
    config = PipelineConfig.parse(
        {
            "model": {"uri": "models/smollm2-shaped"},
            "dataset": {"uri": "rows.jsonl"},
            "tuning": {"method": "lora"},
            "training": training,
        }
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tuned = load_tuned_model(config, folder=folder, device=device)
    tuned.model.train()
    path = LogitsPath(tuned.model)
    ranks = Ranks(rank=0, world_size=1, device=device)
    optimizer = AdapterOptimizer(
        config.training, model=tuned.model, compute=tuned.compute, ranks=ranks
    )
    sequences = StepSequences.of(config.training, split.lengths()).of_step(0)
    groups = micro_batches(sequences, at_once)
    if packing:
        batches = [collate_packed(split, rows, pad_id=0, train_all=False) for rows in groups]
    else:
        alone = ([row for [row] in rows] for rows in groups)
        batches = [collate(split, rows, pad_id=0, train_all=False) for rows in alone]
    optimizer.step(path, batches[-1:], learning_rate=1e-4, step=1)  # warm caches; shortest
    began, busy = time.perf_counter(), time.process_time()
    outcome = optimizer.step(path, batches, learning_rate=1e-4, step=2)
    wall, busy = time.perf_counter() - began, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / (1 << 20)
    return {
        "packing": packing,
        "forwardPasses": len(batches),
        "sequences": len(sequences),
        "paddingShare": round(1 - outcome.num_tokens / sum(b.ids.numel() for b in batches), 3),
        "loss": round(outcome.loss, 4),
        "tokensPerSecond": round(outcome.num_tokens / wall, 1),
        "tokensPerProcessorSecond": round(outcome.num_tokens / busy, 1),
        "peakMiB": round(peak),
    }


def ratios(packed: dict[str, Any], unpacked: dict[str, Any]) -> dict[str, float]:
    keys = {
        "tokensPerSecondRatio": "tokensPerSecond",
        "tokensPerProcessorSecondRatio": "tokensPerProcessorSecond",
        "peakMemoryRatio": "peakMiB",
    }
    return {name: round(packed[key] / unpacked[key], 3) for name, key in keys.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=30, help="SmolLM2-135M has 30")
    parser.add_argument("--measure", choices=("packed", "unpacked"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        found = measure(
            options.model,
            num_rows=options.rows,
            sequence_length=options.sequence_length,
            packing=options.measure == "packed",
        )
        print(json.dumps(found))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), num_layers=options.layers)
        for kind in ("unpacked", "packed"):
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", kind]
            done = subprocess.run(
                [*command, "--model", folder], check=True, stdout=subprocess.PIPE, text=True
            )
            found[kind] = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps(found[kind]))
    print(json.dumps(ratios(found["packed"], found["unpacked"])))


if __name__ == "__main__":
    main()
