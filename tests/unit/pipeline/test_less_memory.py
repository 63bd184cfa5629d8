"""What is suggested where memory ran out: only what the job does not do already."""

from __future__ import annotations

from typing import Any

import pytest

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.training.recovery import suggest_less_memory


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
    ],
)
def test_settings_that_need_less_are_named(
    sections: dict[str, Any], said: str, unsaid: str
) -> None:
    text = suggested(**sections)
    assert f"set {said}" in text
    assert unsaid not in text
