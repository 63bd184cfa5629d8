"""More rows than usual on a GPU that has the room, by its plan: no GPU is needed for that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.integration.pipeline.micro_batch.rooms import (
    LIBRARIES,
    PLACE,
    config_of,
    micro_batch_of,
)

from anneal_pipeline import micro_batch
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.errors import StopRequestedError
from anneal_pipeline.memory.estimate import planning
from anneal_pipeline.memory.fit import Setting
from anneal_pipeline.micro_batch import MicroBatch
from anneal_pipeline.model.four_bit import choose_base_form


def planned_on_gpu(
    config: PipelineConfig,
    *,
    longest: int,
    model_dir: Path,
    room_for_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> MicroBatch:
    """By its plan, which needs no GPU to be there."""
    monkeypatch.setattr(micro_batch, "choose_compute", lambda *_, **__: torch.float32)
    plans = planning(config_of(), folder=model_dir, place=replace(PLACE, on_gpu=True))
    setting = Setting(rows=room_for_rows, length=longest, checkpointing=True)
    found = micro_batch_of(config, longest=longest, room=plans(setting).peak, on_gpu=True)
    found.plan(folder=model_dir, form=choose_base_form(config.tuning, device=torch.device("cpu")))
    return found


@pytest.mark.parametrize(
    ("wanted", "room_for_rows", "with_room"), [(1, 4, 4), (1, 16, 16), (2, 4, 2), (None, 4, 4)]
)
def test_a_gpu_that_one_row_leaves_room_on_is_found_out(
    model_dir: Path,
    longest: int,
    monkeypatch: pytest.MonkeyPatch,
    wanted: int | None,
    room_for_rows: int,
    with_room: int,
) -> None:
    asked = {} if wanted is None else {"microBatchSize": wanted}
    found = planned_on_gpu(
        config_of(batchSize=16, **asked),
        longest=longest,
        model_dir=model_dir,
        room_for_rows=room_for_rows,
        monkeypatch=monkeypatch,
    ).planned()
    assert found is not None
    assert found.rows == (wanted or 4)
    assert found.rows_with_room == with_room
    assert found.num_bytes > LIBRARIES


def test_a_stop_is_looked_for_before_the_plans_of_more_rows_too(
    model_dir: Path, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planned_on_gpu(
        config_of(batchSize=16, microBatchSize=1),
        longest=longest,
        model_dir=model_dir,
        room_for_rows=4,
        monkeypatch=monkeypatch,
    )
    monkeypatch.setattr(found.observer, "should_stop", lambda: True)
    with pytest.raises(StopRequestedError):
        found.planned()
