"""Fetching a base model: safetensors weights, configuration, tokenizer, and nothing else.

Pickled weights and Python files are never downloaded, so no code of a model can run here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from anneal_jobs.storage.meter import OnBytes
from anneal_jobs.storage.source import (
    SourceAccess,
    SourceFile,
    digest_of,
    fetch_files,
    list_source,
)
from anneal_jobs.storage.uri import parse_uri
from anneal_pipeline.checkpoint.manifest import ignore_chunk
from anneal_pipeline.config.model import ModelConfig
from anneal_pipeline.errors import MODEL_NOT_FOUND
from anneal_pipeline.model.folder import CONFIG_NAME, check_model_config, check_model_files

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
    "additional_chat_templates/*.jinja",
    "LICENSE*",
)
_WEIGHTS = "*.safetensors*"
_TEMPLATES = "additional_chat_templates/"
"""The only folder that is taken too: that of further chat templates, as one for rows with tools."""


@dataclass(frozen=True, kw_only=True)
class FetchedModel:
    folder: Path
    digest: str
    """Of the files' names and contents."""


def find_model(config: ModelConfig, *, to: Path, access: SourceAccess) -> list[SourceFile]:
    """The files of the base model, or why this is no model to train on.

    Judged by their names and by config.json, which is fetched below `to`.
    """
    uri = parse_uri(config.uri)
    found = list_source(
        uri,
        kind="model",
        revision=config.revision,
        not_found_reason=MODEL_NOT_FOUND,
        access=access,
    )
    names = [file.name for file in found]
    check_model_files([name for name in names if "/" not in name] or names, uri=str(uri))
    files = [file for file in found if any(fnmatch(file.name, p) for p in _WANTED)]
    files = [file for file in files if "/" not in file.name.removeprefix(_TEMPLATES)]
    to.mkdir(parents=True, exist_ok=True)
    description = next(file for file in files if file.name == CONFIG_NAME)
    check_model_config(description.fetch(to, ignore_chunk).read_bytes(), uri=str(uri))
    return files


def fetch_model(
    config: ModelConfig, *, to: Path, access: SourceAccess, on_bytes: OnBytes
) -> FetchedModel:
    """Put the base model into a local folder, or say why this is no model to train on."""
    files = find_model(config, to=to, access=access)
    paths = fetch_files(files, to=to, on_bytes=on_bytes)
    weights = next(path for path in paths if path.suffix == ".safetensors")
    return FetchedModel(folder=weights.parent, digest=digest_of(files, paths, on_bytes=on_bytes))


def fetch_tokenizer(config: ModelConfig, *, to: Path, access: SourceAccess) -> Path:
    """Fetch everything but the weights, and return the folder."""
    files = find_model(config, to=to, access=access)
    paths = [file.fetch(to, ignore_chunk) for file in files if not fnmatch(file.name, _WEIGHTS)]
    return next(path for path in paths if path.name == CONFIG_NAME).parent
