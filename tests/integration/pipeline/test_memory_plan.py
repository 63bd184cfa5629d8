"""What a step needs is told without weights, and is what it then takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.benchmarks.memory import SMALL, measure_apart, plan, write_model
from tests.unit.pipeline.families import COMMON, FAMILIES, make_family
from transformers import LlamaConfig

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.tuning import TuningConfig
from anneal_pipeline.memory.fit import Setting
from anneal_pipeline.memory.plan import MemoryPlan
from anneal_pipeline.memory.rank_limit import plans_by_rank
from anneal_pipeline.memory.trace import Place, PlanUnknownError, make_planner
from anneal_pipeline.training.loss import LogitsPath

PLACE = Place(compute=torch.float32, in_4_bit=False, on_gpu=False)


def config_of(**training: Any) -> PipelineConfig:
    return PipelineConfig.parse(
        {"model": {"uri": "m"}, "dataset": {"uri": "d"}, "training": training}
    )


@pytest.mark.parametrize(
    "case",
    [
        {"method": "lora", "rows": 2, "length": 128, "checkpointing": False},
        {"method": "qlora", "rows": 2, "length": 256},
    ],
    ids=["fp32", "nf4"],
)
def test_a_plan_is_within_15_percent_of_the_measured_peak(
    case: dict[str, Any], tmp_path: Path
) -> None:
    case = {**case, "model": "small"}
    write_model(tmp_path, {**SMALL, "num_hidden_layers": 4})
    planned, measured = plan(case, tmp_path), measure_apart(case, tmp_path)
    assert planned["peak"] == pytest.approx(measured["peak"], rel=0.15)
    corrected = planned["peak"] - planned["pass"] + measured["pass"]
    assert corrected == pytest.approx(measured["peak"], rel=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_planned_from_its_config_alone(family: str, tmp_path: Path) -> None:
    model = make_family(family)
    model.config.save_pretrained(tmp_path)
    planner = make_planner(config_of(), folder=tmp_path, place=PLACE)
    one, four = (planner.plan(rows=rows, length=16) for rows in (1, 4))
    stored = {p.untyped_storage().data_ptr(): p.nbytes for p in model.parameters()}
    assert one.weights == pytest.approx(sum(stored.values()), rel=0.05)
    assert four.activations > 1.5 * one.activations > 0
    assert four.batch == 4 * one.batch


def test_what_cannot_be_gone_through_is_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a model that decides by values what it computes."""

    def branches(*_: Any) -> None:
        raise RuntimeError("Could not guard on data-dependent expression")

    make_family("llama").config.save_pretrained(tmp_path)
    planner = make_planner(config_of(), folder=tmp_path, place=PLACE)
    monkeypatch.setattr(LogitsPath, "backward", branches)
    with pytest.raises(PlanUnknownError, match="cannot be planned"):
        planner.plan(rows=1, length=16)


def test_settings_move_their_parts(tmp_path: Path) -> None:
    sizes = {**COMMON, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 8192}
    LlamaConfig(**sizes).save_pretrained(tmp_path)
    plans = {
        name: make_planner(config_of(**training), folder=tmp_path, place=place).plan(
            rows=2, length=32
        )
        for name, training, place in [
            ("plain", {}, PLACE),
            ("kept", {"gradientCheckpointing": False}, PLACE),
            ("packed", {"packing": True}, PLACE),
            ("nf4", {}, replace(PLACE, in_4_bit=True)),
            ("gpu", {}, Place(compute=torch.bfloat16, in_4_bit=True, on_gpu=True)),
        ]
    }
    plain = plans["plain"]
    assert plain.logits > 0
    assert plans["kept"].activations > plain.activations
    assert plans["packed"].activations > plain.activations  # which rows see each other
    assert plans["nf4"].weights < plain.weights
    assert plans["nf4"].quantization_state > 0 == plain.quantization_state
    assert plans["gpu"].weights < plans["nf4"].weights
    assert plans["gpu"].overhead == 0


def test_ranks_that_fall_are_planned_with_all_they_begin_with(tmp_path: Path) -> None:
    make_family("llama").config.save_pretrained(tmp_path)

    def plan_of(lora: dict[str, Any]) -> MemoryPlan:
        config = config_of().model_copy(
            update={"tuning": TuningConfig.parse({"method": "lora", "lora": lora})}
        )
        return make_planner(config, folder=tmp_path, place=PLACE).plan(rows=1, length=16)

    plain, falling = plan_of({"rank": 6}), plan_of({"rank": 4, "rankAllocation": {}})
    strengths = 14 * 6 * 4
    assert falling.adapters == plain.adapters + strengths
    # two moments, and what each number's importance rests on
    assert falling.optimizer == 4 * falling.adapters
    assert plain.optimizer == 2 * plain.adapters


def test_a_plan_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    make_family("llama").config.save_pretrained(tmp_path)
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    make_planner(config_of(), folder=tmp_path, place=PLACE).plan(rows=1, length=16)
    assert torch.equal(torch.rand(3), want)


def test_ranks_that_fall_are_planned_for_each_rank_that_is_tried(tmp_path: Path) -> None:
    make_family("llama").config.save_pretrained(tmp_path)
    lora = {"rank": 4, "rankAllocation": {"initialRank": 6}}
    config = PipelineConfig.parse(
        {"model": {"uri": "m"}, "dataset": {"uri": "d"}, "tuning": {"lora": lora}}
    )
    plan_of = plans_by_rank(
        config,
        setting=Setting(rows=1, length=16, checkpointing=True),
        folder=tmp_path,
        place=PLACE,
    )
    four, eight = plan_of(4), plan_of(8)
    assert four is not None
    assert eight is not None
    assert eight.adapters == 2 * four.adapters
