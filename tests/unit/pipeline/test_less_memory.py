"""What is suggested where memory ran out: only what the job does not do already."""

from __future__ import annotations

from typing import Any

import pytest

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.training.out_of_memory import suggest_less_memory


def falling(*, rank: int, **allocation: int) -> dict[str, Any]:
    return {"tuning": {"lora": {"rank": rank, "rankAllocation": allocation}}}


def suggested(**sections: dict[str, Any]) -> str:
    data = {"model": {"uri": "models/tiny"}, "dataset": {"uri": "rows.jsonl"}, **sections}
    return suggest_less_memory(PipelineConfig.parse(data), rows=1, length=512)


@pytest.mark.parametrize(
    ("sections", "said", "unsaid"),
    [
        pytest.param(
            {"tuning": {"quantization": {"doubleQuant": False}}},
            "tuning.quantization.doubleQuant to true",
            "tuning.method",
            id="single quantisation",
        ),
        pytest.param({}, "training.optimizer to pagedAdamw8bit", "doubleQuant", id="whole moments"),
        pytest.param(
            {"training": {"optimizer": "pagedAdamw8bit"}},
            "training.sequenceLength to 256",
            "training.optimizer",
            id="moments in 8 bits already",
        ),
        pytest.param(
            {"tuning": {"method": "lora"}}, "tuning.method to qlora", "doubleQuant", id="no 4 bits"
        ),
        pytest.param({}, "tuning.lora.rank to 8", "initialRank", id="ranks that stay"),
        pytest.param(
            falling(rank=16), "tuning.lora.rank to 8", "initialRank", id="begins by the rank"
        ),
        pytest.param(
            falling(rank=8, initialRank=64),
            "tuning.lora.rankAllocation.initialRank to 32",
            "tuning.lora.rank ",
            id="begins with a rank of its own",
        ),
        pytest.param(
            falling(rank=40, initialRank=64),
            "tuning.lora.rankAllocation.initialRank to 32 and tuning.lora.rank below it",
            "tuning.lora.rank to",
            id="which stays above the average",
        ),
    ],
)
def test_settings_that_need_less_are_named(
    sections: dict[str, Any], said: str, unsaid: str
) -> None:
    text = suggested(**sections)
    assert f"set {said}" in text
    assert unsaid not in text
