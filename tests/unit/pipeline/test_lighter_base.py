"""Where no setting of a step helps, one that holds the base in less is looked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.errors import ADAPTER_IMPOSSIBLE, UserError
from anneal_pipeline.memory import lighter
from anneal_pipeline.memory.estimate import Estimate, LighterBase, Wish, estimate
from anneal_pipeline.memory.fit import PlanOf, Setting, Verdict
from anneal_pipeline.memory.lighter import lighter_bases
from anneal_pipeline.memory.plan import MemoryPlan
from anneal_pipeline.memory.room import Room
from anneal_pipeline.memory.trace import Place, PlanUnknownError

MIB = 1 << 20
CPU = Place(compute=torch.float32, in_4_bit=False, on_gpu=False)
GPU = Place(compute=torch.bfloat16, in_4_bit=False, on_gpu=True)
METHOD = {"tuning.method": "qlora"}
NF4 = {"tuning.quantization.type": "nf4"}
BFLOAT16 = {"tuning.quantization.computeDtype": "bfloat16"}
WANTED = Setting(rows=1, length=128, checkpointing=True)


def changes_for(
    tuning: dict[str, Any], place: Place, *, fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> list[Mapping[str, str]]:
    monkeypatch.setattr(lighter, "find_fault", lambda device, *, wanted: fault)
    config = PipelineConfig.parse(
        {"model": {"uri": "m"}, "dataset": {"uri": "d"}, "tuning": tuning}
    )
    bases = lighter_bases(config, folder=Path("m"), place=place, device=torch.device("cpu"))
    return [base.changes for base in bases]


@pytest.mark.parametrize(
    ("tuning", "place", "fault", "want"),
    [
        pytest.param(
            {"method": "lora"}, CPU, None, [METHOD, BFLOAT16, METHOD | BFLOAT16], id="lora"
        ),
        pytest.param({"method": "lora"}, GPU, None, [METHOD], id="lora in 16 bits"),
        pytest.param({"method": "lora"}, CPU, "none here", [BFLOAT16], id="4 bits not to be had"),
        pytest.param(
            {"method": "lora", "lora": {"initialization": "pissa"}},
            CPU,
            None,
            [BFLOAT16],
            id="a beginning that needs whole weights",
        ),
        pytest.param({}, replace(CPU, in_4_bit=True), None, [BFLOAT16], id="nf4"),
        pytest.param(
            {"quantization": {"type": "fp4"}},
            replace(CPU, in_4_bit=True),
            None,
            [NF4, BFLOAT16, NF4 | BFLOAT16],
            id="fp4",
        ),
        pytest.param(
            {"quantization": {"type": "fp4"}}, replace(GPU, in_4_bit=True), None, [], id="nothing"
        ),
    ],
)
def test_what_may_hold_the_base_in_less(
    tuning: dict[str, Any],
    place: Place,
    fault: str | None,
    want: list[Mapping[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert changes_for(tuning, place, fault=fault, monkeypatch=monkeypatch) == want


def plans(weights: int) -> PlanOf:
    """So many MiB of weights, and 1 MiB for each token."""

    def plan_of(setting: Setting) -> MemoryPlan:
        return MemoryPlan(
            weights=weights * MIB,
            quantization_state=0,
            adapters=0,
            gradients=0,
            optimizer=0,
            batch=0,
            activations=setting.rows * setting.length * MIB,
            logits=0,
            overhead=0,
            loading=weights * MIB,
        )

    return plan_of


def unknown(setting: Setting) -> MemoryPlan:
    raise PlanUnknownError("no")


def impossible(setting: Setting) -> MemoryPlan:
    raise UserError(ADAPTER_IMPOSSIBLE, "modulesToSave names what is held in 4 bits there")


def estimate_of(*lighter: LighterBase, room: int = 1000) -> Estimate:
    return estimate(
        Wish(setting=WANTED, share=4, may_lower=False),
        room=Room(limit=room * MIB, libraries=0),
        plan_of=plans(4000),
        lighter=lighter,
    )


def test_the_first_that_fits_is_named() -> None:
    found = estimate_of(
        LighterBase(changes=BFLOAT16, plan_of=plans(2000)),
        LighterBase(changes={"a": "b"}, plan_of=unknown),
        LighterBase(changes={"a": "c"}, plan_of=impossible),
        LighterBase(changes=METHOD, plan_of=plans(500)),
        LighterBase(changes=METHOD | BFLOAT16, plan_of=plans(250)),
    )
    assert found.choice.verdict is Verdict.DOES_NOT_FIT
    assert found.nearest is not None
    assert found.nearest.setting == WANTED
    assert "; set tuning.method to qlora, which needs about 628 MiB" in found.refusal()


def test_a_lighter_base_may_take_shorter_rows_too() -> None:
    found = estimate_of(LighterBase(changes=METHOD, plan_of=plans(780)))
    assert found.nearest is not None
    assert found.nearest.change_from(WANTED) == (
        "set tuning.method to qlora and training.sequenceLength to 64"
    )


def test_where_none_fits_it_is_said() -> None:
    found = estimate_of(LighterBase(changes=METHOD, plan_of=plans(2000)))
    assert found.nearest is None
    assert "; take a smaller model or more memory" in found.refusal()


def test_a_run_that_fits_asks_for_none() -> None:
    found = estimate_of(LighterBase(changes={"a": "b"}, plan_of=unknown), room=8000)
    assert found.fits
    assert found.nearest is None
