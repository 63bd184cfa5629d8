"""A loss that runs away: back before it with half the rate, or an honest end."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.integration.pipeline.mishaps import config_of, scale_adapters, told

from anneal_pipeline.errors import UserError


@pytest.fixture
def sharp(kit: ModuleType, tmp_path: Path) -> Path:
    """A model whose loss can run away: the tiny one is held by its small output head."""
    folder: Path = kit.write_model(tmp_path / "sharp", hidden=64, spread=0.2)
    return folder


def runaway_config(kit: ModuleType, mode: str) -> Any:
    return config_of(
        kit,
        training={
            "maxSteps": 24,
            "schedule": "constant",
            "recovery": {"divergence": mode},
        },
        checkpoint={"everySteps": 4},
    )


def derailing(kit: ModuleType, *, times: int) -> Any:
    class Derailing(kit.RecordingObserver):  # type: ignore[name-defined,misc]
        """Makes the adapters ten times as large after step 14."""

        def on_step(self, report: Any) -> None:
            super().on_step(report)
            if report.step == 14 and len([s for s in self.steps if s.step == 14]) <= times:
                scale_adapters(10.0)

    return Derailing()


def test_a_loss_that_runs_away_goes_back_before_it_with_half_the_rate(
    kit: ModuleType, sharp: Path, rows: Path, tmp_path: Path
) -> None:
    observer = derailing(kit, times=1)
    config = runaway_config(kit, "recover")
    result = kit.run(tmp_path, config, model_dir=sharp, rows=rows, observer=observer)
    assert result.step == 24
    [message] = told(observer)
    assert "The loss ran away: its mean over 10 steps is" in message
    assert "; back to step 12 with learning rate 0.005" in message
    steps = [report.step for report in observer.steps]
    [turn] = [i for i, (a, b) in enumerate(pairwise(steps)) if b <= a]
    assert steps[turn + 1] == 13
    assert {report.learning_rate for report in observer.steps[turn + 1 :]} == {0.005}
    assert max(report.loss for report in observer.steps[turn + 1 :]) < 7.5
    names = kit.make_store(tmp_path).names()
    assert [name[:11] for name in names] == ["step-000024", "step-000020", "step-000016"]


def test_when_lower_rates_do_not_hold_it_the_run_fails(
    kit: ModuleType, sharp: Path, rows: Path, tmp_path: Path
) -> None:
    observer = derailing(kit, times=99)
    options = {"model_dir": sharp, "rows": rows, "observer": observer}
    with pytest.raises(UserError, match=r"ran away.*halved 3 times already") as caught:
        kit.run(tmp_path, runaway_config(kit, "recover"), **options)
    assert caught.value.reason == "LossDiverged"
    assert len(told(observer)) == 3


def test_a_loss_that_runs_away_fails_at_once_where_that_is_asked_for(
    kit: ModuleType, sharp: Path, rows: Path, tmp_path: Path
) -> None:
    options = {"model_dir": sharp, "rows": rows, "observer": derailing(kit, times=1)}
    with pytest.raises(UserError, match=r"ran away: its mean over 10 steps is") as caught:
        kit.run(tmp_path, runaway_config(kit, "fail"), **options)
    assert caught.value.reason == "LossDiverged"
