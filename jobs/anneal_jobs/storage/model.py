"""Fetching a base model: safetensors weights, configuration, tokenizer, and nothing else.

Pickled weights and Python files are never downloaded, so no code of a model can run here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from anneal_jobs.storage.source import (
    OnBytes,
    SourceAccess,
    SourceFile,
    digest_of,
    fetch_files,
    list_source,
)
from anneal_jobs.storage.uri import StorageUri, parse_uri
from anneal_pipeline.config.model import ModelConfig
from anneal_pipeline.errors import (
    MODEL_IS_GGUF,
    MODEL_NOT_FOUND,
    MODEL_NOT_SAFETENSORS,
    MODEL_UNSUPPORTED,
    UserError,
)

_WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
)


@dataclass(frozen=True, kw_only=True)
class FetchedModel:
    folder: Path
    digest: str
    """Of the files' names and contents."""


def fetch_model(
    config: ModelConfig, *, to: Path, access: SourceAccess, on_bytes: OnBytes
) -> FetchedModel:
    """Put the base model into a local folder, or say why this is no model to train on."""
    uri = parse_uri(config.uri)
    found = list_source(
        uri,
        kind="model",
        revision=config.revision,
        not_found_reason=MODEL_NOT_FOUND,
        access=access,
    )
    files = _select(found, uri)
    to.mkdir(parents=True, exist_ok=True)
    paths = fetch_files(files, to=to, on_bytes=on_bytes)
    weights = next(path for path in paths if path.suffix == ".safetensors")
    return FetchedModel(folder=weights.parent, digest=digest_of(files, paths))


def _select(found: list[SourceFile], uri: StorageUri) -> list[SourceFile]:
    names = [file.name for file in found]
    wanted = [file for file in found if any(fnmatch(file.name, p) for p in _WANTED)]
    wanted = [file for file in wanted if "/" not in file.name]
    if not found:
        raise UserError(
            MODEL_NOT_FOUND,
            f"There is no model at {uri}: nothing lies at this address; correct model.uri or "
            "upload the model folder there.",
        )
    if not any(file.name.endswith(".safetensors") for file in wanted):
        raise _no_weights(names, uri)
    if not any(file.name == "config.json" for file in wanted):
        raise UserError(
            MODEL_UNSUPPORTED,
            f"The model at {uri} has no config.json; model.uri must name a Hugging Face model "
            "folder.",
        )
    return wanted


def _no_weights(names: list[str], uri: StorageUri) -> UserError:
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
