"""What has to lie in a base model's folder before any of it is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from anneal_pipeline.checkpoint.manifest import sha256_of
from anneal_pipeline.errors import (
    MODEL_IS_GGUF,
    MODEL_NOT_FOUND,
    MODEL_NOT_SAFETENSORS,
    MODEL_UNSUPPORTED,
    UserError,
)

CONFIG_NAME = "config.json"


def check_model_folder(folder: Path, *, uri: str) -> None:
    """Refuse, with the reason, what is no plain safetensors model."""
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if folder.is_file() and folder.suffix == ".gguf":
        raise _gguf(uri, folder.name)
    if not folder.is_dir():
        raise UserError(
            MODEL_NOT_FOUND,
            f"Model {uri} is not there; set model.uri to a folder with config.json and "
            "safetensors weights",
        )
    if not weights:
        raise _no_weights(folder, uri)
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(
            MODEL_NOT_FOUND,
            f"Model {uri} has weights but no config.json; expected a complete Hugging Face folder",
        )
    _check_config(json.loads((folder / CONFIG_NAME).read_text()), uri=uri)


def _no_weights(folder: Path, uri: str) -> UserError:
    gguf = sorted(folder.glob("*.gguf"))
    if gguf:
        return _gguf(uri, gguf[0].name)
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickled:
        return UserError(
            MODEL_NOT_SAFETENSORS,
            f"Model {uri} has its weights in {pickled[0].name}, a pickle file that can run code "
            "when read; expected safetensors: load it where you trust it and save it again with "
            "save_pretrained",
        )
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    return UserError(
        MODEL_NOT_SAFETENSORS,
        f"Model {uri} has no safetensors weights (found {found}); set model.uri to a folder that "
        "holds config.json, tokenizer.json and *.safetensors",
    )


def _gguf(uri: str, name: str) -> UserError:
    return UserError(
        MODEL_IS_GGUF,
        f"Model {uri} is the GGUF file {name}, whose quantised weights cannot be trained on; use "
        "the safetensors model it was made from, or make one with `anneal models import`",
    )


def _check_config(config: dict[str, Any], *, uri: str) -> None:
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UserError(
            MODEL_UNSUPPORTED,
            f"Model {uri} is already quantised ({method}); expected its unquantised weights, which "
            "Anneal quantises itself when it loads them",
        )
    if "auto_map" in config:
        raise UserError(
            MODEL_UNSUPPORTED,
            f"Model {uri} needs Python code from its own repository, which Anneal never runs; use "
            "a model of an architecture that transformers has",
        )


def model_digest(folder: Path) -> str:
    """SHA-256 over the config and weights, in hex: which base this is, wherever it came from."""
    digest = hashlib.sha256()
    for path in [folder / CONFIG_NAME, *sorted(folder.glob("*.safetensors"))]:
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
