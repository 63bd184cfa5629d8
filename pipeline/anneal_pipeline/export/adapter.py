"""The adapter as a folder that PEFT and the tokenizer classes load, and proof that it does."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from anneal_pipeline.checkpoint.manifest import MANIFEST_NAME, list_entries
from anneal_pipeline.config.model import ModelConfig
from anneal_pipeline.errors import PipelineError
from anneal_pipeline.model.beginning import BEGINNING, TRAINED, activate, is_sum, joined
from anneal_pipeline.model.strengths import folded, folded_config, has_strengths, is_folded

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
GENERATION_NAME = "generation_config.json"
_RELOADED = "reloaded"
_TOLERANCE = 1e-5


class ExportError(PipelineError):
    """What was exported is not what was trained."""


def write_adapter(
    folder: Path,
    *,
    model: PeftModel,
    base: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
) -> None:
    """Write weights, PEFT config, tokenizer and chat template; refuse numbers that are none."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = adapter_weights(model)
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ExportError(
            f"{len(broken)} of {len(weights)} adapter tensors hold NaN or infinity, first "
            f"{broken[0]}; nothing is exported. Training had finite numbers, so suspect the memory "
            "or processor of this node: the next attempt takes the weights from the last good "
            "checkpoint; if it ends here too, run the job on another node"
        )
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    _write_config(folder, model=model, base=base)
    # They are written for their owner alone, and whoever may read the rest may read them.
    shutil.copymode(folder / CONFIG_NAME, folder / WEIGHTS_NAME)
    tokenizer.save_pretrained(folder)
    (folder / GENERATION_NAME).write_text(
        json.dumps(
            {"eos_token_id": list(stop_ids), "pad_token_id": tokenizer.pad_token_id}, indent=2
        )
        + "\n"
    )


def adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """What is trained and nothing of the base.

    Embeddings and head that are one weight are written under both names, so that every loader gets
    both; PEFT makes them one again.
    """
    found = get_peft_model_state_dict(model, save_embedding_layers=False)
    if BEGINNING in model.peft_config:
        found = joined(model, found)
    if has_strengths(model):
        found = folded(model, found)
    weights: dict[str, torch.Tensor] = {}
    known: set[int] = set()
    for name, tensor in found.items():
        whole = tensor.detach().cpu().contiguous()
        weights[name] = whole.clone() if whole.data_ptr() in known else whole
        known.add(whole.data_ptr())
    return weights


def _base_address(uri: str) -> str:
    """What loaders find the base by: its name on the hub, or a folder from wherever they run."""
    if uri.startswith("file://") or "://" not in uri:
        return str(Path(uri.removeprefix("file://")).expanduser().absolute())
    return uri.removeprefix("hf://").rstrip("/")


def _write_config(folder: Path, *, model: PeftModel, base: ModelConfig) -> None:
    """The PEFT config with the model's own name in place of the folder it was loaded from."""
    config = model.peft_config[TRAINED]
    local = (config.base_model_name_or_path, config.revision, config.inference_mode)
    config.base_model_name_or_path = _base_address(base.uri)
    config.revision = base.revision
    config.inference_mode = True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.base_model_name_or_path, config.revision, config.inference_mode = local
    path = folder / CONFIG_NAME
    fields = json.loads(path.read_text())
    # PEFT keeps target modules in a set, whose order differs from process to process.
    fields["target_modules"] = sorted(fields["target_modules"])
    if BEGINNING in model.peft_config:
        fields |= _of_twice_the_rank(fields)
    if has_strengths(model):
        fields |= folded_config(model)
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _of_twice_the_rank(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What makes an adapter of both the trained one and its beginning, scaled as they were."""
    growth = math.sqrt(2.0) if fields["use_rslora"] else 2.0
    return {
        "r": 2 * fields["r"],
        "lora_alpha": growth * fields["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in fields["rank_pattern"].items()},
        "alpha_pattern": {name: growth * own for name, own in fields["alpha_pattern"].items()},
    }


def verify_adapter(folder: Path, *, model: PeftModel, ids: torch.Tensor) -> None:
    """Load the folder as a second adapter: it must give the logits of the trained one.

    An adapter that joins two, or has strengths folded into it, rounds otherwise in 16 bits, layer
    after layer: there it must be that sum or product itself, to the bit.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        want = logits.float()
        with warnings.catch_warnings():
            # PEFT does not see through the first adapter's wrapper that the weights are tied.
            warnings.filterwarnings("ignore", message="You have requested `ensure_weight_tying`")
            model.load_adapter(str(folder), adapter_name=_RELOADED)
        model.set_adapter(_RELOADED)
        _tie_reloaded(model)
        got = model(input_ids=ids).logits.float()
        is_exact = logits.dtype != torch.float32 and _is_another_form(model)
    model.set_adapter(TRAINED)  # alone: PEFT deletes beside one active adapter only
    model.delete_adapter(_RELOADED)
    activate(model)
    model.train(was_training)
    difference = float((want - got).abs().max())
    if not is_exact and not difference <= _TOLERANCE * float(want.abs().max().clamp(min=1.0)):
        raise ExportError(
            f"The exported adapter gives other logits than the trained one (largest difference "
            f"{difference:.3g}); it is not published. The next attempt writes it anew from the "
            "last good checkpoint; if it ends here too, look at the disk of this node, and report "
            "the model's architecture and the tuning section as a fault of the export"
        )


def _is_another_form(model: PeftModel) -> bool:
    """True if the reloaded adapter is the trained one in the form of a plain one, to the bit."""
    if has_strengths(model):
        return is_folded(model, _RELOADED)
    return BEGINNING in model.peft_config and is_sum(model, _RELOADED)


def _tie_reloaded(model: PeftModel) -> None:
    """Give the second adapter's head the second adapter's embeddings, as a fresh load does."""
    if not model.peft_config[TRAINED].ensure_weight_tying:
        return
    base = model.get_base_model()
    head = base.get_output_embeddings()
    head.update(_RELOADED)
    embedding = base.get_input_embeddings().modules_to_save[_RELOADED]
    head.modules_to_save[_RELOADED].weight = embedding.weight
    head.set_adapter([_RELOADED])


def write_artifact_manifest(folder: Path) -> str:
    """List every file of `artifacts/` with its SHA-256; return that of the list, in hex."""
    entries = [vars(entry) for entry in list_entries(folder)]
    data = json.dumps({"files": entries}, indent=2, sort_keys=True).encode() + b"\n"
    (folder / MANIFEST_NAME).write_bytes(data)
    return hashlib.sha256(data).hexdigest()
