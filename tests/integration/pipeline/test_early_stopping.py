"""Training that no longer helps ends early, with the best weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.pipeline.mishaps import config_of, told

from anneal_pipeline.errors import UserError
from anneal_pipeline.evaluation.perplexity import Evaluator


def watching_config(kit: ModuleType, *, accept: tuple[str, ...] = (), **early: Any) -> Any:
    return config_of(
        kit,
        dataset={"split": {"train": 0.8, "validation": 0.2}},
        training={
            "maxSteps": 12,
            "learningRate": 1.0,
            "schedule": "constant",
            "earlyStopping": {"patience": 2, **early},
        },
        evaluation={"everySteps": 1},
        checkpoint={"everySteps": 4, "keep": 1, "acceptChanges": list(accept)},
    )


def test_the_result_is_that_of_the_best_evaluation(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    observer = kit.RecordingObserver()
    options = {"model_dir": model_dir, "rows": rows}
    result = kit.run(tmp_path, watching_config(kit), observer=observer, **options)
    [stopped] = told(observer, "early-stop")
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    values = {e.step: e.metrics["responsePerplexity"] for e in observer.evaluations if e.step}
    assert best["value"] == min(values.values()) == values[best["step"]]
    assert result.step == best["step"] + 2 < 12
    assert f"at step {result.step} of 12" in stopped
    assert len(told(observer, "best-restored")) == 1
    saved = load_file(tmp_path / "checkpoints" / best["name"] / "adapter.safetensors")
    got = load_file(tmp_path / "out" / "artifacts" / "adapter" / "adapter_model.safetensors")
    assert {name.replace(".default", "") for name in saved} == set(got)
    for name, tensor in saved.items():
        assert torch.equal(got[name.replace(".default", "")], tensor)
    assert result.tuned_metrics["responsePerplexity"] == best["value"]

    again = kit.RecordingObserver()
    resumed = kit.run(tmp_path, watching_config(kit), attempt=2, observer=again, **options)
    assert again.steps == [], "a resumed run knows that it was over"
    assert resumed.artefact_digest == result.artefact_digest


def test_the_last_weights_stay_where_that_is_asked_for(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    config = watching_config(kit, restoreBest=False, metric="tokenAccuracy", minDelta=0.9)
    observer = kit.RecordingObserver()
    result = kit.run(tmp_path, config, model_dir=model_dir, rows=rows, observer=observer)
    assert result.step == 3, "the first evaluation, and two without a gain of 0.9"
    assert told(observer, "best-restored") == []
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best["metric"] == "tokenAccuracy"


def test_without_held_out_rows_it_is_refused(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    config = config_of(kit, training={"earlyStopping": {}})
    with pytest.raises(UserError, match=r"none are held out") as caught:
        kit.run(tmp_path, config, model_dir=model_dir, rows=rows)
    assert caught.value.reason == "NothingToWatch"


def test_held_out_values_that_are_no_numbers_do_not_end_the_run(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics_of = Evaluator._metrics

    def damaged(*arguments: Any, **options: Any) -> Any:
        found = metrics_of(*arguments, **options)
        return replace(found, metrics={name: float("nan") for name in found.metrics})

    monkeypatch.setattr(Evaluator, "_metrics", damaged)
    observer = kit.RecordingObserver()
    result = kit.run(
        tmp_path, watching_config(kit), model_dir=model_dir, rows=rows, observer=observer
    )
    assert result.step == 12
    assert told(observer, "early-stop") == []
    assert not (tmp_path / "checkpoints" / "best.json").exists()


def test_another_metric_that_is_accepted_is_judged_by_its_own_values(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    """Earlier evaluations may not have it, and their best is no measure for it."""
    options = {"model_dir": model_dir, "rows": rows}
    kit.run(tmp_path, watching_config(kit), observer=kit.RecordingObserver(stop_at=2), **options)
    other = watching_config(kit, metric="tokenAccuracy", accept=("training.earlyStopping",))
    # whole-text perplexity is measured from here on only
    third = watching_config(kit, metric="perplexity", accept=("training.earlyStopping",))
    for attempt, config in ((2, other), (3, third)):
        observer = kit.RecordingObserver(stop_at=attempt + 2 if config is other else None)
        kit.run(tmp_path, config, attempt=attempt, observer=observer, **options)
        best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
        metric = config.training.early_stopping.metric
        values = {e.step: e.metrics[metric] for e in observer.evaluations if e.step}
        assert best["metric"] == metric
        assert values[best["step"]] == best["value"]
