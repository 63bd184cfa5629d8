"""What a base loses in 4 bits is measured against the model's own files, and told in the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tests.integration.pipeline.plain_bases import base_of
from transformers import GPT2Config

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.efficiency import rounding
from anneal_pipeline.efficiency.rounding import Rounding, measure_rounding
from anneal_pipeline.model.loading import load_tuned_model
from anneal_pipeline.observer import EVENT_ROUNDING_MEASURED, EVENT_WARNING

CPU = torch.device("cpu")
KINDS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
GAUSSIAN_NF4 = 0.092
"""Of normal weights in blocks of 64 (the QLoRA paper's format), by simulation: 9.1 to 9.3 %."""


@pytest.fixture(scope="module")
def folder(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for 4-bit blocks."""
    made: Path = kit.write_model(tmp_path_factory.mktemp("wide"), hidden=64, spread=0.1)
    return made


def config_of(kit: ModuleType, *, method: str = "qlora", kind: str = "nf4") -> PipelineConfig:
    quantization = {"type": kind, "computeDtype": "float32"}
    config: PipelineConfig = kit.make_config(
        tuning={"method": method, "lora": {"rank": 4}, "quantization": quantization},
        training={"maxSteps": 2},
        evaluation={"numGenerations": 0},
        export={"verify": False},
    )
    return config


def measured(
    kit: ModuleType, folder: Path, *, files: Path | None = None, **options: Any
) -> Rounding | None:
    tuned = load_tuned_model(config_of(kit, **options), folder=folder, device=CPU)
    return measure_rounding(tuned.model, files or folder)


def test_the_error_is_that_of_the_layers_as_they_compute(kit: ModuleType, folder: Path) -> None:
    found = measured(kit, folder)
    assert found is not None
    assert {kind.kind for kind in found.kinds} == KINDS
    assert all(kind.num_modules == len(kind.errors) == 2 for kind in found.kinds)
    [queries] = [kind for kind in found.kinds if kind.kind == "q_proj"]
    whole, rounded = base_of(folder, "lora"), base_of(folder, "qlora")
    for error, before, after in zip(
        queries.errors, whole.model.layers, rounded.model.layers, strict=True
    ):
        weight = before.self_attn.q_proj.weight
        with torch.no_grad():
            held = after.self_attn.q_proj(torch.eye(64)).T
            want = (held - weight).norm() / weight.norm()
        assert error == pytest.approx(float(want), rel=1e-4)
    assert found.error == pytest.approx(GAUSSIAN_NF4, rel=0.05)


def test_fp4_loses_more_than_nf4_in_as_many_bits(kit: ModuleType, folder: Path) -> None:
    nf4, fp4 = measured(kit, folder), measured(kit, folder, kind="fp4")
    assert nf4 is not None
    assert fp4 is not None
    assert fp4.error > 1.2 * nf4.error
    assert fp4.bits == nf4.bits
    assert nf4.saved_bytes == 2 * nf4.num_weights - nf4.num_bytes > nf4.num_weights


def test_layers_that_hold_their_weights_the_other_way_are_compared_the_right_way(
    kit: ModuleType, tmp_path: Path
) -> None:
    """GPT-2's Conv1D: a weight compared with its transpose is off by more than it is long."""
    config = GPT2Config(vocab_size=kit.VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=256)
    found = measured(kit, kit.save_model(tmp_path / "gpt2", config))
    assert found is not None
    assert {kind.kind for kind in found.kinds} == {"c_attn", "c_proj", "c_fc"}
    assert found.error == pytest.approx(GAUSSIAN_NF4, rel=0.05)


def test_of_many_layers_the_first_middle_and_last_are_read(kit: ModuleType, folder: Path) -> None:
    assert rounding._spread([(str(n), n) for n in range(9)]) == [("0", 0), ("4", 4), ("8", 8)]
    told: list[tuple[int, int]] = []
    tuned = load_tuned_model(config_of(kit), folder=folder, device=CPU)
    measure_rounding(tuned.model, folder, on_layer=lambda *done: told.append(done))
    assert told == [(n, 14) for n in range(1, 15)]


def test_a_base_that_is_not_in_4_bits_has_no_such_section(kit: ModuleType, folder: Path) -> None:
    assert measured(kit, folder, method="lora") is None


def test_kinds_whose_weights_have_other_names_in_the_files_are_left_out(
    kit: ModuleType, folder: Path, tmp_path: Path
) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name.replace("q_proj", "query"): weight for name, weight in weights.items()},
        tmp_path / "model.safetensors",
    )
    found = measured(kit, folder, files=tmp_path)
    assert found is not None
    assert {kind.kind for kind in found.kinds} == KINDS - {"q_proj"}
    assert measured(kit, folder, files=tmp_path / "nothing") is None


def test_a_file_that_nobody_loads_from_is_passed_over(
    kit: ModuleType, folder: Path, tmp_path: Path
) -> None:
    """A pointer in place of weights, as Git LFS leaves it, beside the file that the model is in."""
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "consolidated.safetensors").write_text("version https://git-lfs")
    found = measured(kit, folder, files=tmp_path / "model")
    assert found is not None
    assert {kind.kind for kind in found.kinds} == KINDS


def test_a_layer_of_nothing_loses_nothing() -> None:
    assert rounding._relative(torch.zeros(4, 64), torch.zeros(4, 64)) == 0.0


def test_a_run_tells_it_in_its_report_and_as_an_event(
    kit: ModuleType, folder: Path, tmp_path: Path
) -> None:
    rows = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(16))
    observer = kit.RecordingObserver()
    kit.run(tmp_path, config_of(kit), model_dir=folder, rows=rows, observer=observer)
    evaluation = tmp_path / "out" / "evaluation"
    section = json.loads((evaluation / "report.json").read_text())["rounding"]
    assert section["error"] == pytest.approx(GAUSSIAN_NF4, rel=0.05)
    [message] = [text for event, text in observer.events if event == EVENT_ROUNDING_MEASURED]
    assert f"off by {section['error']:.1%}" in message
    for page in ("report.md", "report.html"):
        text = (evaluation / page).read_text()
        assert message in text
        assert "gate_proj" in text


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "No such file or directory"), SafetensorError("header too large")],
    ids=["gone", "damaged"],
)
def test_a_run_whose_files_are_gone_by_then_is_exported_all_the_same(
    kit: ModuleType,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(rounding, "_relative", fail)
    rows = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(16))
    observer = kit.RecordingObserver()
    done = kit.run(tmp_path, config_of(kit), model_dir=folder, rows=rows, observer=observer)
    assert (done.adapter_dir / "adapter_model.safetensors").exists()
    warning = [text for event, text in observer.events if event == EVENT_WARNING][-1]
    assert "has no section on the 4-bit base" in warning
