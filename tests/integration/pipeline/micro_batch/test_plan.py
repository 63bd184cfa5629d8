"""The micro-batch comes from the memory plan, before any weights are loaded."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from tests.integration.pipeline.micro_batch.rooms import (
    LIBRARIES,
    Listener,
    Start,
    config_of,
    measuring,
    planned,
    room_for,
    room_of_bytes,
    rows_taken,
)

from anneal_pipeline import micro_batch, opening
from anneal_pipeline.errors import DOES_NOT_FIT, StopRequestedError, UserError
from anneal_pipeline.memory.estimate import LighterBase
from anneal_pipeline.memory.fit import Setting
from anneal_pipeline.memory.plan import MemoryPlan
from anneal_pipeline.observer import EVENT_WARNING


def test_with_room_enough_the_usual_rows_are_taken_and_nothing_is_measured(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, [])
    observer = Listener()
    start(tmp_path, config_of(maxSteps=1), observer=observer, room_of=room_of_bytes(1 << 40))
    (plan,) = planned(observer)
    assert rows_taken(tmp_path) == plan["microBatchSize"] == 4
    assert plan["activationsBytes"] > 0
    assert plan["loadingBytes"] == plan["weightsBytes"] > 0
    assert plan["limitBytes"] == (1 << 40) + LIBRARIES


def test_little_room_takes_fewer_rows_for_the_same_batch(
    tmp_path: Path, model_dir: Path, start: Start, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, [None])
    room = room_for(2, longest=longest, model_dir=model_dir)
    observer = Listener()
    few = start(tmp_path / "few", config_of(), observer=observer, room_of=room)
    many = start(tmp_path / "many", config_of())
    assert rows_taken(tmp_path / "few") == 2
    assert rows_taken(tmp_path / "many") == 4
    assert few.total_steps == many.total_steps
    assert few.tuned_metrics["loss"] == pytest.approx(many.tuned_metrics["loss"], rel=1e-4)


def test_a_stop_is_looked_for_before_each_plan(
    tmp_path: Path, start: Start, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_load_model", lambda *given: pytest.fail("went on"))
    with pytest.raises(StopRequestedError):
        start(tmp_path, config_of(), observer=Listener(stop_at=0), room_of=room_of_bytes(1 << 40))


def test_what_cannot_fit_ends_before_any_weights_are_read(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(opening, "_load_model", lambda *given: loaded.append(given))
    with pytest.raises(UserError, match="The run does not fit: it needs about") as refused:
        start(tmp_path, config_of(), room_of=room_of_bytes(1 << 20))
    assert refused.value.reason == DOES_NOT_FIT
    assert not loaded


def test_a_stop_is_looked_for_before_the_plans_of_lighter_bases_too(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = Listener()

    def too_large(setting: Setting) -> MemoryPlan:
        observer.stop_at = 0  # from here on
        return replace(some_plan(), weights=1 << 40)

    lighter = [LighterBase(changes={"tuning.method": "qlora"}, plan_of=too_large)]
    monkeypatch.setattr(micro_batch, "lighter_bases", lambda *_, **__: iter(lighter))
    with pytest.raises(StopRequestedError):
        start(tmp_path, config_of(), observer=observer, room_of=room_of_bytes(1 << 20))


@pytest.mark.parametrize(("share", "warns"), [(0.8, False), (0.95, True)])
def test_loading_that_may_need_more_than_there_is_is_warned_of(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, share: float, warns: bool
) -> None:
    free = 1 << 30
    plan = replace(some_plan(), loading=int(share * free))
    monkeypatch.setattr(micro_batch, "planning", lambda *_, **__: lambda setting: plan)
    observer = Listener()
    start(tmp_path, config_of(), observer=observer, room_of=room_of_bytes(free))
    told = [text for name, text in observer.events if name == EVENT_WARNING]
    assert any("Memory may run out while the model is loaded" in text for text in told) == warns
    assert not planned(observer, "measured"), "loading is over by then"


def some_plan() -> MemoryPlan:
    """A step of 80 MiB."""
    names = [part.name for part in fields(MemoryPlan)]
    return MemoryPlan(**dict.fromkeys(names, 10 << 20))


def test_a_micro_batch_that_was_asked_for_is_lowered_and_that_is_said(
    tmp_path: Path, model_dir: Path, start: Start, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, [None])
    observer = Listener()
    start(
        tmp_path,
        config_of(maxSteps=1, microBatchSize=4),
        observer=observer,
        room_of=room_for(2, longest=longest, model_dir=model_dir),
    )
    assert rows_taken(tmp_path) == 2
    assert any(
        name == EVENT_WARNING
        and message
        == "training.microBatchSize 4 does not fit: going on with 2 rows per forward "
        "pass and more accumulation, the batch of 4 and the number of steps stay"
        for name, message in observer.events
    )


def test_without_recovery_it_is_never_lowered(tmp_path: Path, start: Start) -> None:
    config = config_of(microBatchSize=4, recovery={"oom": "fail"})
    with pytest.raises(UserError, match="with 4 rows of up to"):
        start(tmp_path, config, room_of=room_of_bytes(1 << 20))
