"""Our side of the training benchmark: the product's own loop, opened and driven as in a run."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from training_meter import Measured, Meter, held_out_loss, read_rows

from anneal_pipeline.checkpoint.local import LocalFolder
from anneal_pipeline.checkpoint.store import CheckpointStore
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.memory.room import Room
from anneal_pipeline.observer import NullObserver, StepReport
from anneal_pipeline.opening import Inputs
from anneal_pipeline.run import open_run
from anneal_pipeline.training.ranks import Ranks

PACKAGES = ("transformers", "peft", "torch", "accelerate", "bitsandbytes")


class StepEnds(NullObserver):
    """Passes every end of a step on to the meter."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter
        self.num_tokens = 0

    def on_step(self, report: StepReport) -> None:
        self.num_tokens += report.num_tokens
        self.meter.step_ended(report.step, num_tokens=self.num_tokens)


def main(task: dict[str, Any]) -> None:
    import_all()
    meter = Meter(
        device=task["device"], warmup_steps=task["warmupSteps"], total_steps=task["steps"]
    )
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(scratch)
        shutil.copytree(task["prepared"], workspace / "data")
        run = open_run(
            Inputs(
                config=config_of(task),
                workspace=workspace,
                scratch=workspace / "scratch",
                model_dir=Path(task["model"]),
                dataset_files=None,
                checkpoints=CheckpointStore(
                    LocalFolder(workspace / "checkpoints"),
                    scratch=workspace / "store",
                    attempt=1,
                    writer="bench",
                    keep=1,
                ),
                observer=StepEnds(meter),
                ranks=Ranks(rank=0, world_size=1, device=torch.device(task["device"])),
                # Both sides take the micro-batch they are told.
                room_of=lambda ranks: Room(limit=None, libraries=0),
                clock=time.monotonic,
            )
        )
        run.train()
    loss = held_out_loss(run.opened.tuned.model, read_rows(Path(task["heldOut"])))
    versions = {name: version(name) for name in PACKAGES}
    Measured.of(meter, loss=loss, versions=versions).write(Path(task["result"]))


def config_of(task: dict[str, Any]) -> PipelineConfig:
    lora = {"rank": task["lora"]["r"], "alpha": task["lora"]["lora_alpha"]}
    return PipelineConfig.parse(
        {
            "model": {"uri": task["model"]},
            "dataset": {"files": {"train": "train.jsonl", "validation": "held-out.jsonl"}},
            "tuning": {
                "method": task["method"],
                "lora": {**lora, "dropout": task["lora"]["lora_dropout"]},
                "quantization": {"computeDtype": task["ours"]["computeDtype"]},
            },
            "training": {
                "maxSteps": task["steps"],
                "batchSize": task["batchSize"],
                "microBatchSize": task["microBatchSize"],
                "sequenceLength": task["sequenceLength"],
                "learningRate": task["learningRate"],
                "schedule": "linear",
                "warmupSteps": 0,
                "seed": task["seed"],
                **task["ours"]["training"],
            },
            "evaluation": {"baseline": False, "everySteps": task["steps"]},
            "checkpoint": {"everySteps": task["steps"], "milestones": []},
        }
    )


def import_all() -> None:
    """What a run imports on its way, so that no module counts as memory of the training."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import anneal_pipeline.model.quantization  # noqa: F401


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
