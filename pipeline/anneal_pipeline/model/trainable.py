"""What is trained, checked by name: the adapters and what the job asked for, nothing of the base.

A base that is not frozen would need its gradients and moments, many times the memory of the
adapters, and would be trained without being exported.
"""

from __future__ import annotations

from collections.abc import Iterable

from anneal_pipeline.config.tuning import LoraConfig

_ADAPTERS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
_WHOLE = "modules_to_save"
_NEW_ROWS = "trainable_tokens_delta"
_NUM_NAMED = 3


def require_only_adapters_trained(
    trained: Iterable[str], config: LoraConfig, *, has_new_tokens: bool
) -> None:
    """Raise RuntimeError, as an error of ours, where any other of these parameters is trained."""
    asked = {*_ADAPTERS}
    if config.modules_to_save:
        asked.add(_WHOLE)
    if has_new_tokens:
        asked.add(_NEW_ROWS)
    foreign = [name for name in trained if not _is_asked(name, asked=asked, bias=config.bias)]
    if foreign:
        more = ", ..." if len(foreign) > _NUM_NAMED else ""
        raise RuntimeError(
            f"{len(foreign)} parameters of the base are trained beside the adapters: "
            f"{', '.join(foreign[:_NUM_NAMED])}{more}; the base should be frozen: report it"
        )


def _is_asked(name: str, *, asked: set[str], bias: str) -> bool:
    parts = name.split(".")
    return not asked.isdisjoint(parts) or (bias != "none" and parts[-1] == "bias")
