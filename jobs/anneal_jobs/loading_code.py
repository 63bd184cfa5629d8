"""The lines of Python that load a tuned adapter, for the closing page and the run's page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from anneal_jobs.storage.uri import parse_uri
from anneal_operator.api.run_config import RunConfig
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.tuning import LOFTQ


def from_folder(pipeline: PipelineConfig, folder: str) -> list[str]:
    """For an adapter that lies in `folder` on the reader's machine."""
    return list(_code(pipeline, before=(), folder=repr(folder)))


def from_registry(config: RunConfig, *, tracking_uri: str | None) -> list[str]:
    """For the version that the alias names.

    `tracking_uri` is the address of MLflow as the reader sees it, None where only they know it.
    """
    tracking = config.tracking
    server = (
        "# MLFLOW_TRACKING_URI must be set to the address of this server"
        if tracking_uri is None
        else f"mlflow.set_tracking_uri({tracking_uri!r})"
    )
    address = f"models:/{tracking.registered_model}@{tracking.alias}"
    folder = f"mlflow.artifacts.download_artifacts({address!r})"
    return ["import mlflow", *_code(config.pipeline, before=(server,), folder=folder)]


def _code(pipeline: PipelineConfig, *, before: tuple[str, ...], folder: str) -> Iterator[str]:
    """A base from the hub or this disk is found by its name in the adapter, another one is not."""
    is_elsewhere = parse_uri(pipeline.model.uri).scheme in ("s3", "pvc")
    in_4_bit = pipeline.tuning.lora.initialization == LOFTQ
    names = [
        *(["AutoModelForCausalLM"] if is_elsewhere else []),
        "AutoTokenizer",
        *(["BitsAndBytesConfig"] if in_4_bit else []),
    ]
    yield f"from peft import {'PeftModel' if is_elsewhere else 'AutoPeftModelForCausalLM'}"
    yield f"from transformers import {', '.join(names)}"
    yield ""
    yield from before
    yield f"folder = {folder}"
    yield "tokenizer = AutoTokenizer.from_pretrained(folder)"
    form = ""
    if in_4_bit:  # what LoftQ corrects is there only with the base in the same four bits
        four_bits = pipeline.tuning.quantization
        yield (
            f"form = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type={four_bits.type!r}, "
            f"bnb_4bit_use_double_quant={four_bits.double_quant})"
        )
        form = ", quantization_config=form"
    if not is_elsewhere:
        yield f"model = AutoPeftModelForCausalLM.from_pretrained(folder{form})"
        return
    uri = pipeline.model.uri
    # By ./ it is no name of the hub, which would be fetched from there.
    copy = f"./{PurePosixPath(uri).name}"
    yield f"base = AutoModelForCausalLM.from_pretrained({copy!r}{form})  # your copy of {uri}"
    if pipeline.tuning.new_tokens:
        yield "if len(tokenizer) > base.get_input_embeddings().num_embeddings:"
        yield "    base.resize_token_embeddings(len(tokenizer))"
    yield "model = PeftModel.from_pretrained(base, folder)"
