"""What was found out about the room is remembered over a resume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.pipeline.micro_batch.rooms import (
    Listener,
    Start,
    adapter_of,
    config_of,
    measuring,
    planned,
    room_for,
    room_of_bytes,
    rows_taken,
    state_of,
)
from tests.integration.pipeline.mishaps import scale_adapters
from tests.unit.pipeline.kit import RecordingObserver

from anneal_pipeline.config.pipeline import PipelineConfig


def test_a_resumed_run_keeps_its_rows_whatever_room_there_is_now(
    tmp_path: Path,
    model_dir: Path,
    start: Start,
    longest: int,
    monkeypatch: pytest.MonkeyPatch,
    tightened: list[bool],
) -> None:
    measuring(monkeypatch, [None, None])
    tight = room_for(2, longest=longest, model_dir=model_dir)
    config = config_of()
    start(tmp_path / "whole", config, room_of=tight)
    stopped = start(tmp_path / "stopped", config, room_of=tight, observer=Listener(stop_at=3))
    assert stopped.interrupted
    assert len(tightened) == 2
    observer = Listener()
    start(
        tmp_path / "stopped", config, attempt=2, observer=observer, room_of=room_of_bytes(1 << 40)
    )
    assert not planned(observer)
    assert len(tightened) == 3
    assert rows_taken(tmp_path / "stopped") == 2
    weights = [adapter_of(tmp_path / name) for name in ("whole", "stopped")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_short_memory_is_not_forgotten_by_going_back_to_the_beginning(
    tmp_path: Path,
    model_dir: Path,
    start: Start,
    longest: int,
    monkeypatch: pytest.MonkeyPatch,
    tightened: list[bool],
) -> None:
    @dataclass
    class Damaging(RecordingObserver):
        """Puts NaN into the weights after the third step, once; no checkpoint is left by then."""

        def on_step(self, report: Any) -> None:
            super().on_step(report)
            if [step.step for step in self.steps] == [3]:
                for path in (tmp_path / "checkpoints").glob("step-*/adapter.safetensors"):
                    path.write_bytes(b"")
                scale_adapters(float("nan"))

    measuring(monkeypatch, [None])
    tight, plenty = room_for(2, longest=longest, model_dir=model_dir), room_of_bytes(1 << 40)
    start(tmp_path, config_of(), room_of=tight, observer=Listener(stop_at=2))
    damaging = Damaging()
    start(tmp_path, config_of(), attempt=2, room_of=plenty, observer=damaging)
    assert [step.step for step in damaging.steps][:2] == [3, 1]
    assert state_of(tmp_path)["is_memory_short"]
    start(tmp_path, config_of(), attempt=3, room_of=plenty)
    assert len(tightened) == 3


@pytest.mark.parametrize("is_tight", [True, False])
def test_another_micro_batch_is_remembered_with_its_own_plan(
    tmp_path: Path,
    model_dir: Path,
    start: Start,
    longest: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_tight: bool,
) -> None:
    measuring(monkeypatch, [None])
    tight, plenty = room_for(2, longest=longest, model_dir=model_dir), room_of_bytes(1 << 40)
    rooms = (plenty, tight) if is_tight else (tight, plenty)
    start(tmp_path, config_of(), room_of=rooms[0], observer=Listener(stop_at=2))
    assert state_of(tmp_path)["is_memory_short"] is not is_tight
    data = {**config_of(microBatchSize=2).to_data()}
    data["checkpoint"] = {"acceptChanges": ["training.microBatchSize"]}
    start(tmp_path, PipelineConfig.parse(data), attempt=2, room_of=rooms[1])
    assert state_of(tmp_path)["is_memory_short"] is is_tight
