"""Runs that something goes wrong in: their configuration, what is done to them, what they say."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

QUIET = {"numGenerations": 0, "baseline": False}
ALL_TRAIN = {"split": {"train": 1.0, "validation": 0.0}}


def config_of(kit: ModuleType, **sections: Any) -> Any:
    data = {
        "dataset": ALL_TRAIN,
        "tuning": {"method": "lora", "lora": {"rank": 4, "dropout": 0.1}},
        "export": {"verify": False},
        **sections,
    }
    data["evaluation"] = {**QUIET, **data.get("evaluation", {})}
    return kit.make_config(**data)


def adapter(root: Path) -> bytes:
    return (root / "out" / "artifacts" / "adapter" / "adapter_model.safetensors").read_bytes()


def told(observer: Any, name: str = "recovered") -> list[str]:
    return [message for event, message in observer.events if event == name]


def scale_adapters(factor: float) -> None:
    """Reach into the running training, as broken hardware would."""
    for found in gc.get_objects():
        if isinstance(found, torch.nn.Parameter) and found.requires_grad:
            found.data.mul_(factor)


def poisoned_model(kit: ModuleType, model_dir: Path, folder: Path, *, text: str) -> Path:
    """The model with an input embedding that is no number for the first token of `text`."""
    shutil.copytree(model_dir, folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(model_dir, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    token = kit.make_tokenizer()(text, add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    model.save_pretrained(folder)
    return folder
