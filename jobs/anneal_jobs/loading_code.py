"""The lines of Python that load a tuned adapter, for the closing page and the run's page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from anneal_operator.api.run_config import RunConfig
from anneal_pipeline.config.pipeline import PipelineConfig


def from_folder(pipeline: PipelineConfig, folder: str) -> list[str]:
    """For an adapter that lies in `folder` on the reader's machine."""
    return list(_code(pipeline, imports=(), folder=f'"{folder}"'))


def from_registry(config: RunConfig) -> list[str]:
    """For the version that the alias names; where MLflow is, the reader's settings say."""
    tracking = config.tracking
    address = f"models:/{tracking.registered_model}@{tracking.alias}"
    return list(
        _code(
            config.pipeline,
            imports=("import mlflow",),
            folder=f'mlflow.artifacts.download_artifacts("{address}")',
        )
    )


def _code(pipeline: PipelineConfig, *, imports: tuple[str, ...], folder: str) -> Iterator[str]:
    """A base from the hub or this disk is found by its name in the adapter, another one is not."""
    uri = pipeline.model.uri
    is_elsewhere = uri.startswith(("s3://", "pvc://"))
    yield from imports
    yield f"from peft import {'PeftModel' if is_elsewhere else 'AutoPeftModelForCausalLM'}"
    models = "AutoModelForCausalLM, AutoTokenizer" if is_elsewhere else "AutoTokenizer"
    yield f"from transformers import {models}"
    yield ""
    yield f"folder = {folder}"
    yield "tokenizer = AutoTokenizer.from_pretrained(folder)"
    if not is_elsewhere:
        yield "model = AutoPeftModelForCausalLM.from_pretrained(folder)"
        return
    copy = PurePosixPath(uri).name
    yield f'base = AutoModelForCausalLM.from_pretrained("{copy}")  # a copy of {uri}'
    if pipeline.tuning.new_tokens:
        yield "base.resize_token_embeddings(len(tokenizer))"
    yield "model = PeftModel.from_pretrained(base, folder)"
