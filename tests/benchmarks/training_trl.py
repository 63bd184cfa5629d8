"""TRL's side of the training benchmark: `SFTTrainer` on the prepared tokens.

What the job does not name stays at TRL's defaults, unless the variant says otherwise.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from training_meter import Measured, Meter, held_out_loss, read_rows
from transformers import AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

PACKAGES = ("trl", "transformers", "peft", "torch", "accelerate", "bitsandbytes")


class StepEnds(TrainerCallback):
    """Passes every end of a step on to the meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # TRL's own count: without padding, of the batches that went through the model.
        tokens = self.trainer._total_train_tokens
        self.meter.step_ended(state.global_step, num_tokens=tokens)


def main(task: dict[str, Any]) -> None:
    rows = read_rows(Path(task["train"]))
    meter = Meter(
        device=task["device"], warmup_steps=task["warmupSteps"], total_steps=task["steps"]
    )
    ends = StepEnds(meter)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=task["model"],
            args=_settings(task, scratch=scratch),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(task["model"]),
            peft_config=LoraConfig(
                task_type="CAUSAL_LM", target_modules="all-linear", **task["lora"]
            ),
            quantization_config=_four_bit() if task["method"] == "qlora" else None,
            callbacks=[ends],
        )
        ends.trainer = trainer
        trainer.train()
    # Else its forward stays under the autocast that it was trained in.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    loss = held_out_loss(model, read_rows(Path(task["heldOut"])))
    versions = {name: version(name) for name in PACKAGES}
    Measured.of(meter, loss=loss, versions=versions).write(Path(task["result"]))


def _settings(task: dict[str, Any], *, scratch: str) -> SFTConfig:
    settings = {
        "output_dir": scratch,
        "use_cpu": task["device"] == "cpu",
        "max_steps": task["steps"],
        "per_device_train_batch_size": task["microBatchSize"],
        "gradient_accumulation_steps": task["batchSize"] // task["microBatchSize"],
        "max_length": task["sequenceLength"],
        "learning_rate": task["learningRate"],
        "lr_scheduler_type": "linear",
        "seed": task["seed"],
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **task["trl"],
    }
    return SFTConfig(**settings)


def _four_bit() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
