"""Diagnoses as a run makes them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from tests.integration.pipeline.mishaps import config_of, told


def test_a_diagnosis_is_said_once_also_over_a_resume(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    config = config_of(kit, training={"batchSize": 2, "maxSteps": 4})
    said = []
    for attempt, stop_at in ((1, 2), (2, None)):
        observer = kit.RecordingObserver(stop_at=stop_at)
        options = {"attempt": attempt, "observer": observer}
        kit.run(tmp_path, config, model_dir=model_dir, rows=rows, **options)
        said.append(told(observer, "diagnosis"))
    assert [len(messages) for messages in said] == [1, 0]
    assert said[0][0].startswith("Every step sees only 2 rows: ")
