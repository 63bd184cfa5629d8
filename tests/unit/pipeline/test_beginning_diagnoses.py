"""What adapters that do not begin as the base are put down to."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from anneal_pipeline.training.diagnoses.beginning import may_differ, of_beginning


@pytest.mark.parametrize(
    ("tuning", "named", "others"),
    [
        ({"lora": {"initialization": "orthogonal"}}, ["lora.initialization"], ["useDora"]),
        ({"lora": {"useDora": True}}, ["lora.useDora"], ["initialization", "newTokens"]),
        ({"newTokens": ["<a>"]}, ["tuning.newTokens"], ["initialization", "useDora"]),
        (
            {"lora": {"useDora": True}, "newTokens": ["<a>"]},
            ["lora.useDora", "tuning.newTokens"],
            ["initialization"],
        ),
    ],
)
def test_the_fix_names_what_makes_the_adapters_differ(
    kit: ModuleType, tuning: dict[str, Any], named: list[str], others: list[str]
) -> None:
    config = kit.make_config(tuning=tuning)
    assert may_differ(config)
    [found] = of_beginning(config, base=1.0, adapted=2.0)
    assert found.row == "S11"
    assert all(field in found.fix for field in named)
    assert not any(field in f"{found.cause}; {found.fix}" for field in others)
