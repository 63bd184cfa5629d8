"""What it takes to know which rows make up which step, without training any.

    .venv/bin/python tests/benchmarks/step_plan.py --rows 1000000

packs rows with the lengths of a chat dataset into sequences of 2048 tokens, and asks for the first
step of two epochs, as a run does that goes from one to the next. Prints a JSON object: seconds, and
the memory held and needed at most on the way, of all Python and NumPy objects, without the lengths
themselves.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import tracemalloc
from array import array

from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.training.sequences import StepSequences

SEQUENCE_LENGTH = 2048
MIB = 1 << 20


def measure(num_rows: int, *, packing: bool) -> dict[str, float]:
    draw = random.Random(1)
    drawn = (int(draw.lognormvariate(5.3, 0.8)) for _ in range(num_rows))
    lengths = array("I", (min(SEQUENCE_LENGTH, max(8, length)) for length in drawn))
    config = TrainingConfig(packing=packing, sequence_length=SEQUENCE_LENGTH)
    began = time.process_time()
    sequences = StepSequences.of(config, lengths)
    sequences.of_step(0)
    sequences.of_step(sequences.batches.steps_per_epoch)
    seconds = time.process_time() - began
    del sequences
    tracemalloc.start()
    sequences = StepSequences.of(config, lengths)
    sequences.of_step(0)
    sequences.of_step(sequences.batches.steps_per_epoch)
    held, peak = tracemalloc.get_traced_memory()
    return {
        "rows": num_rows,
        "sequences": len(sequences),
        "processorSeconds": round(seconds, 1),
        "heldMiB": round(held / MIB, 1),
        "peakMiB": round(peak / MIB, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--unpacked", action="store_true")
    options = parser.parse_args()
    print(json.dumps(measure(options.rows, packing=not options.unpacked)))


if __name__ == "__main__":
    main()
