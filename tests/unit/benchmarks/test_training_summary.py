"""The figures that the training benchmark ends with."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/training.py"


@pytest.fixture(scope="module")
def training() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(speed: float, peak: float, loss: float) -> dict[str, float]:
    return {"tokens_per_second": speed, "peak_mib": peak, "loss": loss}


def test_ratios_are_ours_over_theirs_of_medians(training: ModuleType) -> None:
    found = {
        "ours": [run(300.0, 60.0, 1.1), run(100.0, 80.0, 1.3), run(200.0, 70.0, 1.2)],
        "trl": [run(100.0, 140.0, 1.0), run(90.0, 150.0, 0.9), run(110.0, 130.0, 1.1)],
    }
    assert training.summarise(found) == {
        "tokensPerSecondRatio": 2.0,
        "peakMemoryRatio": 0.5,
        "lossDifference": 0.2,
    }


def test_one_side_alone_has_no_ratio(training: ModuleType) -> None:
    assert set(training.summarise({"ours": [run(1.0, 1.0, 1.0)]}).values()) == {None}


def test_a_variant_for_gpus_is_refused_on_a_cpu(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--sides", "ours", "--variant", "liger", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["training.py", *options])
    with pytest.raises(SystemExit, match="--variant liger runs on cuda only, and this is cpu"):
        training.main()
