"""What may be trained: the adapters and what the job asks for, nothing else of the base."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from anneal_pipeline.model.trainable import require_only_adapters_trained

ADAPTERS = [
    "base_model.model.layers.0.q_proj.lora_A.default.weight",
    "base_model.model.layers.0.q_proj.lora_B.default.weight",
]
HEAD = "base_model.model.lm_head.modules_to_save.default.weight"
ROWS = "base_model.model.embed.token_adapter.trainable_tokens_delta.default"
BIAS = "base_model.model.layers.0.q_proj.base_layer.bias"
BASE = "base_model.model.layers.0.input_layernorm.weight"


def check(kit: ModuleType, names: list[str], *, has_new_tokens: bool = False, **lora: Any) -> None:
    config = kit.make_config(tuning={"method": "lora", "lora": lora}).tuning.lora
    require_only_adapters_trained(names, config, has_new_tokens=has_new_tokens)


def test_adapters_and_what_is_asked_for_may_be_trained(kit: ModuleType) -> None:
    check(kit, ADAPTERS)
    check(kit, [*ADAPTERS, HEAD], modulesToSave=["lm_head"])
    check(kit, [*ADAPTERS, ROWS], has_new_tokens=True)
    check(kit, [*ADAPTERS, BIAS], bias="all")


@pytest.mark.parametrize("foreign", [HEAD, ROWS, BIAS, BASE])
def test_anything_else_that_is_trained_is_named(kit: ModuleType, foreign: str) -> None:
    with pytest.raises(RuntimeError, match=f"1 parameters of the base .*{foreign}; the base"):
        check(kit, [*ADAPTERS, foreign])
