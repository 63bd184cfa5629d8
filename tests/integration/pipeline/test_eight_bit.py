"""Moments in 8 bits: the loss still falls, and a checkpoint holds them to the bit."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anneal_pipeline.config.checkpoint import CheckpointConfig
from anneal_pipeline.errors import UserError

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = kit.write_model(tmp_path_factory.mktemp("wide"), hidden=128)
    return made


@pytest.fixture(scope="module")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(16))
    return path


def config_of(kit: ModuleType, **training: Any) -> Any:
    return kit.make_config(
        # Wide enough that some matrices have 8-bit moments and some are below the limit.
        tuning={"method": "lora", "lora": {"rank": 32, "alpha": 64.0}},
        training={"maxSteps": 6, "optimizer": "pagedAdamw8bit", **training},
        checkpoint={"everySteps": 2},
        evaluation={"baseline": False, "numGenerations": 0},
    )


@pytest.mark.parametrize("training", [{}, {"loraPlusRatio": 4.0}], ids=["plain", "LoRA+"])
def test_8_bit_moments_survive_a_stop_to_the_bit(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path, training: dict[str, Any]
) -> None:
    config = config_of(kit, **training)
    watched = kit.RecordingObserver()
    whole = kit.run(tmp_path / "whole", config, model_dir=folder, rows=rows, observer=watched)
    assert watched.steps[-1].loss < watched.steps[0].loss
    observer = kit.RecordingObserver(stop_at=3)
    cut = kit.run(tmp_path / "cut", config, model_dir=folder, rows=rows, observer=observer)
    assert cut.interrupted
    [saved] = (tmp_path / "cut" / "checkpoints").glob("step-000003*")
    moments = load_file(saved / "optimizer.safetensors")
    assert {t.dtype for key, t in moments.items() if key.endswith("state1")} == {
        torch.uint8,
        torch.float32,
    }
    resumed = kit.run(tmp_path / "cut", config, model_dir=folder, rows=rows, attempt=2)
    want, got = load_file(whole.adapter_dir / WEIGHTS), load_file(resumed.adapter_dir / WEIGHTS)
    assert [key for key in want if not torch.equal(want[key], got[key])] == []


@pytest.mark.parametrize(
    ("first", "then"), [("adamw", "pagedAdamw8bit"), ("pagedAdamw8bit", "adamw")]
)
def test_moments_of_another_optimizer_are_refused_though_the_change_is_accepted(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path, first: str, then: str
) -> None:
    observer = kit.RecordingObserver(stop_at=3)
    config = config_of(kit, optimizer=first)
    kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    changed = config_of(kit, optimizer=then).model_copy(
        update={"checkpoint": CheckpointConfig(accept_changes=("training.optimizer",))}
    )
    with pytest.raises(UserError, match="moments of another optimizer") as caught:
        kit.run(tmp_path, changed, model_dir=folder, rows=rows, attempt=2)
    assert caught.value.reason == "RunChanged"


def test_without_bitsandbytes_it_is_refused_before_anything_is_loaded(
    kit: ModuleType,
    tmp_path: Path,
    folder: Path,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    observer = kit.RecordingObserver()
    with pytest.raises(UserError, match=r"bitsandbytes is not installed; .* to adamw") as caught:
        kit.run(tmp_path, config_of(kit), model_dir=folder, rows=rows, observer=observer)
    assert caught.value.reason == "QuantizationUnavailable"
    assert observer.stages == []
