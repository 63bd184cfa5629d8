"""What loading a base takes at its peak is told without its weights, and is what it then takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.benchmarks.loading_memory import apart, measure, plan
from tests.benchmarks.memory import SMALL, write_model
from tests.unit.pipeline.kit import VOCABULARY, make_config
from tests.unit.pipeline.kit import write_model as write_small_model

from anneal_pipeline.memory.trace import Place, make_planner

WIDE = {
    **SMALL,
    "hidden_size": 1024,
    "intermediate_size": 16384,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("case", "layers", "is_above_a_step"),
    [
        pytest.param({"method": "lora", "compute": "bfloat16"}, SMALL, False, id="in-the-file"),
        pytest.param({"method": "qlora"}, WIDE, True, id="nf4"),
    ],
)
def test_a_plan_of_loading_is_within_15_percent_of_the_measured_peak(
    case: dict[str, Any], layers: dict[str, Any], is_above_a_step: bool, tmp_path: Path
) -> None:
    case = {**case, "model": "random"}
    write_model(tmp_path, {**layers, "vocab_size": 16384})
    planned, measured = plan(case, tmp_path), apart(measure, case, tmp_path)
    assert planned["loading"] == pytest.approx(measured["peak"], rel=0.15)
    assert planned["stays"] == pytest.approx(measured["stays"], rel=0.15)
    assert (planned["loading"] > planned["step"]) is is_above_a_step


def test_new_tokens_have_the_table_twice_while_it_grows(tmp_path: Path) -> None:
    write_small_model(tmp_path)
    place = Place(compute=torch.float32, in_4_bit=False, on_gpu=False)
    work = []
    for tokens in ([], [f"<tool-{number}>" for number in range(100)]):
        config = make_config(tuning={"method": "lora", "newTokens": tokens})
        planned = make_planner(config, folder=tmp_path, place=place).plan(rows=1, length=16)
        work.append(planned.loading - planned.weights)
    assert work == [0, VOCABULARY * 32 * 4]
