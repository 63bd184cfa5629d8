"""A loss that is no number: its rows are left out, or the run fails and says so.

Pitfalls: NaN hidden by a filter; an all-NaN adapter saved as success.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.pipeline.mishaps import config_of, poisoned_model, told

from anneal_pipeline.errors import UserError


def test_rows_that_cause_it_are_named_and_left_out(
    kit: ModuleType, model_dir: Path, tmp_path: Path
) -> None:
    """Pitfall: NaN hidden by logging_nan_inf_filter."""
    bad = {5: "Is ~ a wave?", 11: "And ~~?"}
    data = [kit.chat(bad[n], "It is.") if n in bad else row for n, row in enumerate(kit.sums(20))]
    path = kit.write_rows(tmp_path / "rows.jsonl", data)
    folder = poisoned_model(kit, model_dir, tmp_path / "model", text="~")
    observer = kit.RecordingObserver()
    config = config_of(kit, training={"maxSteps": 10})
    kit.run(tmp_path, config, model_dir=folder, rows=path, observer=observer)
    messages = told(observer)
    named = [text.split("now on: ")[1].split(" (")[0].split(", ") for text in messages]
    assert sorted(place for places in named for place in places) == [
        "rows.jsonl:12",
        "rows.jsonl:6",
    ]
    assert [report.step for report in observer.steps] == list(range(1, 11))
    assert {report.learning_rate <= 0.01 for report in observer.steps} == {True}
    tensors = load_file(tmp_path / "out" / "artifacts" / "adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_when_every_row_causes_it_the_run_fails_and_says_so(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    """Pitfall: all-NaN adapter saved as success."""
    folder = poisoned_model(kit, model_dir, tmp_path / "model", text="What")
    observer = kit.RecordingObserver()
    with pytest.raises(UserError, match=r"was halved 3 times already") as caught:
        kit.run(tmp_path, config_of(kit), model_dir=folder, rows=rows, observer=observer)
    assert caught.value.reason == "NonFiniteLoss"
    left_out = [text for text in told(observer) if "left out from now on: " in text]
    assert len(left_out) == 3
    assert all("rows.jsonl:" in text for text in left_out)
    assert not (tmp_path / "out" / "artifacts").exists()
