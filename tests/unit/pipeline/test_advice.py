"""Each band of the specification warns on one side of its border and is silent on the other."""

from __future__ import annotations

from typing import Any

import pytest

from anneal_pipeline.config.tuning import LoraConfig
from anneal_pipeline.model.advice import advice, experts_left_out, experts_left_whole
from anneal_pipeline.model.layers import Layer
from anneal_pipeline.model.roles import Role


def warnings_of(*, trainable: int = 10, base_bytes: int = 2000, **lora: Any) -> list[str]:
    return list(
        advice(
            LoraConfig.parse(lora),
            num_trainable=trainable,
            num_parameters=1000,
            base_bytes=base_bytes,
        )
    )


EXPERTS = (
    Layer(name="0.mlp.up", role=Role.EXPERT, in_features=5, out_features=4, num_experts=3),
    Layer(name="1.mlp.up", role=Role.EXPERT, in_features=5, out_features=4, num_experts=3),
)


def test_experts_that_stay_unquantised_are_told_with_their_share() -> None:
    said = experts_left_whole(EXPERTS, num_parameters=200)
    assert "(up (2)) stay unquantised: 120 of 200 parameters (60%)" in said


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"dropout": 0.1}, "tuning.lora.dropout is 0.1, which"),
        ({"dropout": 0.1, "useDora": True}, "dropout is 0.1 and useDora is on, which"),
        ({"dropout": 0.0, "initialization": "pissa"}, "lora.initialization is pissa, which"),
    ],
)
def test_experts_without_an_adapter_are_told_with_the_reason(
    lora: dict[str, Any], said: str
) -> None:
    assert said in experts_left_out(EXPERTS, LoraConfig.parse(lora))


def test_the_defaults_at_one_percent_are_usual() -> None:
    assert warnings_of() == []


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"trainable": 51, "base_bytes": 4000}, "5.1% of the parameters are trained"),
        ({"base_bytes": 319}, "50% of the base model's memory"),
        ({"rank": 256, "alpha": 512.0}, "rank 256 is for research"),
        ({"rank": 128, "alpha": 512.0}, "alpha 512 is for research"),
        ({"rank": 16, "alpha": 65.0}, "4.1 times rank 16"),
        ({"rank": 64, "alpha": 32.0}, "0.5 times rank 64"),
    ],
)
def test_outside_its_band_a_number_is_named(numbers: dict[str, Any], said: str) -> None:
    [warning] = warnings_of(**numbers)
    assert said in warning


@pytest.mark.parametrize(
    "numbers",
    [
        {"trainable": 50, "base_bytes": 4000},
        {"base_bytes": 320},
        {"rank": 255, "alpha": 255.0},
        {"rank": 128, "alpha": 511.0},
        {"rank": 16, "alpha": 64.0},
        {"rank": 64, "alpha": 32.0, "useRslora": True},
    ],
)
def test_on_the_border_nothing_is_said(numbers: dict[str, Any]) -> None:
    assert warnings_of(**numbers) == []
