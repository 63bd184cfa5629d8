"""The last guards before an adapter is published: numbers that are none, and files that are not
what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anneal_pipeline import run as run_module
from anneal_pipeline.export.adapter import WEIGHTS_NAME, ExportError, write_adapter
from anneal_pipeline.model.adapters import trainable_parameters

Damage = Callable[..., None]


def poison_a_weight(folder: Path, *, model: Any, **options: Any) -> None:
    """One number of one tensor, as a broken memory cell would have it."""
    next(iter(trainable_parameters(model).values())).data.view(-1)[3] = float("nan")
    write_adapter(folder, model=model, **options)


def damage_the_file(folder: Path, **options: Any) -> None:
    write_adapter(folder, **options)
    weights = load_file(folder / WEIGHTS_NAME)
    name = next(name for name in weights if "lora_B" in name)
    save_file({**weights, name: weights[name] + 0.01}, folder / WEIGHTS_NAME)


def lose_a_tensor(folder: Path, **options: Any) -> None:
    """PEFT begins what a file lacks anew, with a warning of its own."""
    write_adapter(folder, **options)
    weights = load_file(folder / WEIGHTS_NAME)
    name = next(name for name in weights if "lora_B" in name)
    save_file({key: value for key, value in weights.items() if key != name}, folder / WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(
            poison_a_weight,
            r"1 of 28 adapter tensors hold NaN .* nothing is exported.* the next attempt",
            id="a number that is none",
        ),
        pytest.param(
            damage_the_file,
            r"gives other logits than the trained one .* not published.* The next attempt",
            id="other numbers",
        ),
        pytest.param(
            lose_a_tensor,
            r"gives other logits than the trained one .* not published.* The next attempt",
            id="a tensor lost",
            marks=pytest.mark.filterwarnings("ignore:Found missing adapter keys"),
        ),
    ],
)
def test_what_is_not_what_was_trained_is_not_published_and_the_next_attempt_does_it_right(
    kit: ModuleType,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Damage,
    said: str,
) -> None:
    """Pitfall: all-NaN adapter saved as success."""
    rows = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(20))
    config = kit.make_config(
        training={"maxSteps": 2}, evaluation={"baseline": False, "numGenerations": 0}
    )
    options = {"model_dir": model_dir, "rows": rows}
    monkeypatch.setattr(run_module, "write_adapter", damage)
    observer = kit.RecordingObserver()
    with pytest.raises(ExportError, match=said):
        kit.run(tmp_path, config, observer=observer, **options)
    artifacts = tmp_path / "out" / "artifacts"
    assert artifacts not in observer.outputs
    assert not (artifacts / "manifest.json").exists()

    monkeypatch.undo()
    again = kit.RecordingObserver()
    result = kit.run(tmp_path, config, attempt=2, observer=again, **options)
    assert result.artefact_digest is not None
    assert again.steps == []
    assert all(
        torch.isfinite(tensor).all()
        for tensor in load_file(artifacts / "adapter" / WEIGHTS_NAME).values()
    )
