"""Going back to a healthy state: to which one, with what, and from then on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.integration.pipeline.mishaps import adapter, config_of, scale_adapters, told

from anneal_pipeline.errors import UserError


@pytest.mark.parametrize(("times", "ends"), [(1, True), (99, False)])
def test_damaged_weights_roll_back_within_limits(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    times: int,
    ends: bool,
) -> None:
    class Damaging(kit.RecordingObserver):  # type: ignore[name-defined,misc]
        """Puts NaN into the weights after the fifth step, as broken hardware would."""

        def on_step(self, report: Any) -> None:
            super().on_step(report)
            if report.step == 5 and len([s for s in self.steps if s.step == 5]) <= times:
                scale_adapters(float("nan"))

    observer = Damaging()
    config = config_of(
        kit,
        training={"maxSteps": 8, "schedule": "constant"},
        checkpoint={"everySteps": 2, "milestones": [50, 100]},
    )
    options = {"model_dir": model_dir, "rows": rows, "observer": observer}
    if ends:
        kit.run(tmp_path, config, **options)
        assert [report.step for report in observer.steps] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
        rates = [report.learning_rate for report in observer.steps]
        assert rates == pytest.approx([0.01] * 5 + [0.005] * 4)
        [message] = told(observer)
        assert "back to step 4 with learning rate 0.005" in message
        assert (tmp_path / "out" / "milestones" / "checkpoint-100pct").is_dir()
    else:
        with pytest.raises(UserError, match=r"halved 3 times already") as caught:
            kit.run(tmp_path, config, **options)
        assert caught.value.reason == "NonFiniteLoss"
        assert len(told(observer)) == 3


def breaking(kit: ModuleType, *, before: Callable[[], object] = lambda: None) -> Any:
    class Breaking(kit.RecordingObserver):  # type: ignore[name-defined,misc]
        """Puts NaN into the weights after the third step, once."""

        def on_step(self, report: Any) -> None:
            super().on_step(report)
            if report.step == 3 and len([s for s in self.steps if s.step == 3]) == 1:
                before()
                scale_adapters(float("nan"))

    return Breaking()


def test_a_run_killed_after_going_back_does_not_take_the_way_given_up_again(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    options = {"model_dir": model_dir, "rows": rows}
    config = config_of(
        kit,
        training={"maxSteps": 4, "schedule": "constant"},
        checkpoint={"everySteps": 2},
    )
    whole = breaking(kit)
    kit.run(tmp_path / "whole", config, observer=whole, **options)

    class Killed(type(breaking(kit))):  # type: ignore[misc]
        """Dies in the first step after the run went back."""

        def on_step(self, report: Any) -> None:
            if [step.step for step in self.steps] == [1, 2, 3]:
                raise InterruptedError
            super().on_step(report)

    first, second = Killed(), kit.RecordingObserver()
    with pytest.raises(InterruptedError):
        kit.run(tmp_path / "killed", config, observer=first, **options)
    [saved] = [report for report in first.checkpoints if report.cause == "recovery"]
    assert (saved.step, saved.name) == (2, "step-000002-a01-1f2e3d4c-r1")
    kit.run(tmp_path / "killed", config, attempt=2, observer=second, **options)
    assert [(report.step, report.learning_rate) for report in second.steps] == [
        (3, 0.005),
        (4, 0.005),
    ]
    assert told(second) == []
    assert adapter(tmp_path / "killed") == adapter(tmp_path / "whole")


@pytest.mark.parametrize("other_rate", [0.001, 0.01], ids=["same-config", "other-config"])
def test_checkpoints_of_another_run_are_neither_taken_nor_deleted(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, other_rate: float
) -> None:
    def training(rate: float) -> dict[str, float]:
        return {"maxSteps": 4, "learningRate": rate}

    options = {"model_dir": model_dir, "rows": rows}
    other = config_of(kit, training=training(other_rate), checkpoint={"everySteps": 2})
    kit.run(tmp_path, other, **options)
    names = kit.make_store(tmp_path).names()
    config = config_of(
        kit,
        training=training(0.001),
        checkpoint={"everySteps": 100, "keep": 9, "resume": "Never"},
    )
    observer = breaking(kit)
    kit.run(tmp_path, config, attempt=2, observer=observer, **options)
    [message] = told(observer)
    assert "back to step 0 with learning rate 0.0005" in message
    assert set(names) < set(kit.make_store(tmp_path).names())


def losing(root: Path, step: int) -> Callable[[], None]:
    """Damages what was saved at a step."""

    def lose() -> None:
        for path in (root / "checkpoints").glob(f"step-{step:06}-*/adapter.safetensors"):
            path.write_bytes(b"")

    return lose


def test_a_run_of_changed_config_goes_back_to_what_it_saved_before_the_change(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    options = {"model_dir": model_dir, "rows": rows}
    old = config_of(kit, training={"maxSteps": 4}, checkpoint={"everySteps": 1})
    kit.run(tmp_path, old, observer=kit.RecordingObserver(stop_at=1), **options)
    config = config_of(
        kit,
        training={"maxSteps": 4, "learningRate": 0.001},
        checkpoint={"everySteps": 100, "acceptChanges": ["training.learningRate"]},
    )
    kit.run(tmp_path, config, attempt=2, observer=kit.RecordingObserver(stop_at=1), **options)
    observer = breaking(kit, before=losing(tmp_path, 2))
    kit.run(tmp_path, config, attempt=3, observer=observer, **options)
    [message] = told(observer)
    assert "back to step 1 with learning rate 0.0005" in message
    assert [report.step for report in observer.steps] == [3, 2, 3, 4]


def test_a_run_does_not_go_back_to_what_a_run_before_it_saved_under_another_config(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    options = {"model_dir": model_dir, "rows": rows}
    other = config_of(kit, training={"maxSteps": 1})
    kit.run(tmp_path, other, **options)

    def config(resume: str) -> Any:
        checkpoint = {"everySteps": 100, "resume": resume}
        return config_of(
            kit, training={"maxSteps": 4, "learningRate": 0.001}, checkpoint=checkpoint
        )

    stopped = kit.RecordingObserver(stop_at=2)
    kit.run(tmp_path, config("Never"), attempt=2, observer=stopped, **options)
    observer = breaking(kit, before=losing(tmp_path, 2))
    kit.run(tmp_path, config("Auto"), attempt=3, observer=observer, **options)
    [message] = told(observer)
    assert "back to step 0 with learning rate 0.0005" in message


def test_a_resumed_run_goes_back_to_the_beginning_as_one_never_stopped(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    config = config_of(
        kit,
        dataset={"split": {"train": 0.8, "validation": 0.2}},
        training={"maxSteps": 4},
        evaluation={"baseline": True, "everySteps": 4},
        checkpoint={"everySteps": 100},
    )
    options = {"model_dir": model_dir, "rows": rows}
    whole, again = tmp_path / "whole", tmp_path / "again"
    want = kit.run(whole, config, observer=breaking(kit), **options)
    kit.run(again, config, observer=kit.RecordingObserver(stop_at=2), **options)

    def lose_checkpoints() -> None:
        for path in (again / "checkpoints").glob("step-*/adapter.safetensors"):
            path.write_bytes(b"")

    observer = breaking(kit, before=lose_checkpoints)
    got = kit.run(again, config, attempt=2, observer=observer, **options)
    assert [report.step for report in observer.steps] == [3, 1, 2, 3, 4]
    assert adapter(again) == adapter(whole)
    assert got.tuned_metrics == want.tuned_metrics
    assert got.base_metrics == want.base_metrics
