"""What has to lie in a base model's folder before any of it is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from anneal_pipeline.checkpoint.manifest import ignore_chunk, sha256_of
from anneal_pipeline.errors import (
    MODEL_IS_GGUF,
    MODEL_NOT_FOUND,
    MODEL_NOT_SAFETENSORS,
    MODEL_UNSUPPORTED,
    UserError,
)
from anneal_pipeline.model.weight_files import check_weight_files

CONFIG_NAME = "config.json"
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any of these makes a tokenizer, alone or with files beside it."""


def check_model_folder(folder: Path, *, uri: str) -> None:
    """Refuse, with the reason, what is no plain safetensors model."""
    if folder.is_file():
        check_model_files([folder.name], uri=uri)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    check_model_files(names, uri=uri)
    check_model_config((folder / CONFIG_NAME).read_bytes(), uri=uri)
    check_weight_files(folder, uri=uri)


def check_model_files(names: Sequence[str], *, uri: str) -> None:
    """Refuse, by the names of its files, what is no plain safetensors model."""
    if not names:
        raise UserError(
            MODEL_NOT_FOUND,
            f"There is no model at {uri}: nothing lies at this address; correct model.uri or "
            "upload the model folder there.",
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise _no_weights(names, uri=uri)
    if CONFIG_NAME not in names:
        raise UserError(
            MODEL_UNSUPPORTED,
            f"The model at {uri} has weights but no {CONFIG_NAME}; model.uri must name a complete "
            "Hugging Face model folder.",
        )
    if not any(name in names for name in TOKENIZER_NAMES):
        raise UserError(
            MODEL_UNSUPPORTED,
            f"The model at {uri} has no tokenizer (expected one of {', '.join(TOKENIZER_NAMES)}); "
            "put the files that save_pretrained() of its tokenizer writes beside the weights.",
        )


def check_model_config(data: bytes, *, uri: str) -> None:
    """Refuse, by its config.json, what Anneal cannot or must not load."""
    try:
        config = json.loads(data)
    except ValueError as error:
        raise _bad_config(uri, f"is not readable ({error})") from error
    if not isinstance(config, dict):
        raise _bad_config(uri, f"holds a JSON {type(config).__name__}, expected an object")
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


def _bad_config(uri: str, what: str) -> UserError:
    return UserError(
        MODEL_UNSUPPORTED,
        f"The {CONFIG_NAME} of the model at {uri} {what}; upload the model's own file again.",
    )


def _no_weights(names: Sequence[str], *, uri: str) -> UserError:
    shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    if any(name.lower().endswith(".gguf") for name in names):
        return UserError(
            MODEL_IS_GGUF,
            f"The model at {uri} is a GGUF file ({shown}), whose quantised weights cannot be "
            "trained on; name the original safetensors, or convert it with `anneal models import`.",
        )
    return UserError(
        MODEL_NOT_SAFETENSORS,
        f"The model at {uri} has no .safetensors weights (found {shown}); pickled weights are "
        "never loaded: save it with save_pretrained() of transformers and upload that folder.",
    )


def model_digest(folder: Path, *, on_chunk: Callable[[int], None] = ignore_chunk) -> str:
    """SHA-256 over the config and weights, in hex: which base this is, wherever it came from."""
    digest = hashlib.sha256()
    for path in [folder / CONFIG_NAME, *sorted(folder.glob("*.safetensors"))]:
        digest.update(f"{path.name} {sha256_of(path, on_chunk=on_chunk)}\n".encode())
    return digest.hexdigest()
