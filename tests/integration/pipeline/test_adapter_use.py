"""A run ends with how well its adapters were used, whatever kind they are, interrupted or not."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from anneal_pipeline.efficiency import use
from anneal_pipeline.observer import EVENT_ADAPTERS_MEASURED, EVENT_WARNING

STEPS = 4
KINDS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
TUNINGS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": {"rank": 4}},
    "dora": {"method": "lora", "lora": {"rank": 4, "useDora": True}},
    "rslora": {"method": "lora", "lora": {"rank": 4, "alpha": 8.0, "useRslora": True}},
    "pissa": {"method": "lora", "lora": {"rank": 4, "initialization": "pissa"}},
    "ranks": {"method": "lora", "lora": {"rank": 4, "rankPattern": {"q_proj": 2}}},
    "nf4": {"method": "qlora", "lora": {"rank": 4}, "quantization": {"computeDtype": "float32"}},
    "loftq": {
        "method": "qlora",
        "lora": {"rank": 4, "initialization": "loftq"},
        "quantization": {"computeDtype": "float32"},
    },
}


@pytest.fixture(scope="module")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(16))
    return path


@pytest.fixture(scope="module")
def folder(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for 4-bit blocks."""
    made: Path = kit.write_model(tmp_path_factory.mktemp("wide"), hidden=64, spread=0.1)
    return made


def config_of(kit: ModuleType, tuning: dict[str, Any]) -> Any:
    return kit.make_config(
        tuning=tuning,
        training={"maxSteps": STEPS},
        checkpoint={"everySteps": 2},
        evaluation={"numGenerations": 0},
        export={"verify": False},
    )


def section_of(root: Path) -> dict[str, Any]:
    report = json.loads((root / "out" / "evaluation" / "report.json").read_text())
    section: dict[str, Any] = report["adapters"]
    return section


@pytest.mark.parametrize("name", TUNINGS)
def test_the_report_has_a_section_of_every_kind_of_adapter(
    kit: ModuleType, folder: Path, rows: Path, tmp_path: Path, name: str
) -> None:
    observer = kit.RecordingObserver()
    config = config_of(kit, TUNINGS[name])
    kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    section = section_of(tmp_path)
    assert {kind["kind"] for kind in section["kinds"]} == KINDS
    assert all(kind["num_modules"] == 2 for kind in section["kinds"])
    for module in section["modules"]:
        own = 2 if name == "ranks" and module["name"].endswith("q_proj") else 4
        assert module["rank"] == own
        assert module["directions"] == (2 * own if name == "pissa" else own)
        assert 1 <= module["effective_rank"] <= module["directions"], module
        assert module["gradient"]["num_samples"] == STEPS
        assert 0 < module["gradient"]["least"] <= module["gradient"]["mean"]
        assert module["gradient_to_weight"] > 0
    inventory = section["inventory"]
    assert inventory["total"] == sum(part["total"] for part in inventory["parts"])
    assert inventory["trainable"] == sum(part["trainable"] for part in inventory["parts"])
    adapters = [part for part in inventory["parts"] if part["group"] == "adapters"]
    assert any("magnitudes" in part["name"] for part in adapters) == (name == "dora")
    assert any(part["frozen"] for part in adapters) == (name == "pissa")
    [held] = [part for part in inventory["parts"] if part["name"] == "transformer"]
    in_4_bits = config.tuning.method == "qlora"
    assert (0.5 < held["num_bytes"] / held["total"] < 1.0) == in_4_bits
    scale = 8.0 / 2.0 if name == "rslora" else config.tuning.lora.alpha / 4
    assert section["effective_learning_rate"] == pytest.approx(0.01 * scale)
    [message] = [text for event, text in observer.events if event == EVENT_ADAPTERS_MEASURED]
    assert "of their directions on average" in message
    assert f"{inventory['trainable']:,} parameters" in message
    for page in ("report.md", "report.html"):
        text = (tmp_path / "out" / "evaluation" / page).read_text()
        assert "Adapters" in text
        assert "down_proj" in text


def test_ranks_that_fell_are_measured_by_what_is_left_of_them(
    kit: ModuleType, folder: Path, rows: Path, tmp_path: Path
) -> None:
    allocation = {"initialRank": 6, "startShare": 0.2, "endShare": 0.75}
    tuning = {"method": "lora", "lora": {"rank": 4, "rankAllocation": allocation}}
    config = config_of(kit, tuning)
    kit.run(tmp_path, config, model_dir=folder, rows=rows)
    modules = section_of(tmp_path)["modules"]
    assert sum(module["rank"] for module in modules) >= 4 * len(modules)
    assert len({module["rank"] for module in modules}) > 1
    for module in modules:
        assert module["directions"] == module["rank"]
        assert module["effective_rank"] <= module["rank"] + 1e-9
        assert module["gradient"]["num_samples"] == STEPS


def test_a_run_that_was_stopped_has_the_numbers_of_one_that_was_not(
    kit: ModuleType, folder: Path, rows: Path, tmp_path: Path
) -> None:
    config = config_of(kit, TUNINGS["lora"])
    options = {"model_dir": folder, "rows": rows}
    kit.run(tmp_path / "whole", config, **options)
    stopped = kit.RecordingObserver(stop_at=3)
    assert kit.run(tmp_path / "twice", config, observer=stopped, **options).interrupted
    kit.run(tmp_path / "twice", config, attempt=2, **options)
    assert section_of(tmp_path / "twice") == section_of(tmp_path / "whole")
    assert section_of(tmp_path / "whole")["num_steps"] == STEPS


def test_clipped_steps_are_counted(
    kit: ModuleType, folder: Path, rows: Path, tmp_path: Path
) -> None:
    config = config_of(kit, TUNINGS["lora"])
    for limit, want in ((1e-4, STEPS), (1e4, 0)):
        training = config.training.model_copy(update={"max_grad_norm": limit})
        changed = config.model_copy(update={"training": training})
        root = tmp_path / str(limit)
        kit.run(root, changed, model_dir=folder, rows=rows)
        assert section_of(root)["num_clipped"] == want


@pytest.mark.parametrize(
    "error",
    [torch.linalg.LinAlgError("svd: did not converge"), MemoryError()],
    ids=["svd", "memory"],
)
def test_a_run_whose_adapters_cannot_be_measured_is_exported_all_the_same(
    kit: ModuleType,
    folder: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(adapter: object) -> None:
        raise error

    monkeypatch.setattr(use, "rank_use", fail)
    observer = kit.RecordingObserver()
    config = config_of(kit, TUNINGS["lora"])
    done = kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    assert (done.adapter_dir / "adapter_model.safetensors").exists()
    assert section_of(tmp_path) is None
    assert "Adapters" not in (tmp_path / "out" / "evaluation" / "report.html").read_text()
    warning = [text for event, text in observer.events if event == EVENT_WARNING][-1]
    assert "has no section on the adapters" in warning
    assert (str(error) or "MemoryError") in warning
    assert EVENT_ADAPTERS_MEASURED not in dict(observer.events)
