"""One measured pass, after loading, corrects the plan of the micro-batch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.integration.pipeline.micro_batch.rooms import (
    LIBRARIES,
    Listener,
    Start,
    adapter_of,
    config_of,
    measuring,
    micro_batch_of,
    plan_of,
    planned,
    room_for,
    room_of_bytes,
    rows_taken,
)
from tests.unit.pipeline.kit import make_config

from anneal_pipeline.errors import DOES_NOT_FIT, UserError
from anneal_pipeline.memory.fit import MARGIN
from anneal_pipeline.memory.full_batch import full_batch
from anneal_pipeline.micro_batch import MEASURED_MARGIN
from anneal_pipeline.model.four_bit import choose_base_form


@pytest.mark.parametrize("want", [4, 2, 1])
def test_one_measured_pass_corrects_the_plan(
    tmp_path: Path,
    model_dir: Path,
    start: Start,
    longest: int,
    want: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planned are two rows; the pass of two takes so much that `want` rows just leave the rest."""
    plan, target = (plan_of(number, longest, model_dir) for number in (2, want))
    free = int(plan.peak * (1 + MARGIN)) + 1
    for_passes = free / (1 + MEASURED_MARGIN) - (target.peak - target.of_pass)
    taken = int(plan.of_pass * for_passes / target.of_pass) - 16
    measuring(monkeypatch, [taken])
    observer = Listener()
    start(
        tmp_path,
        config_of(maxSteps=1),
        observer=observer,
        room_of=room_of_bytes(free),
    )
    (measured,) = planned(observer, "measured")
    assert measured["measuredBytes"] == taken
    assert rows_taken(tmp_path) == measured["microBatchSize"] == want


def test_a_pass_that_runs_out_of_memory_is_tried_with_half_the_rows_and_not_again(
    tmp_path: Path, model_dir: Path, start: Start, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, [MemoryError(), 1])
    start(
        tmp_path, config_of(maxSteps=1), room_of=room_for(2, longest=longest, model_dir=model_dir)
    )
    assert rows_taken(tmp_path) == 1


def test_memory_that_runs_out_with_one_row_is_the_users_to_mend(
    tmp_path: Path, model_dir: Path, start: Start, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, [MemoryError()])
    tight = room_of_bytes(plan_of(1, longest, model_dir).peak)
    with pytest.raises(UserError, match="measured pass of 1 row of up to") as refused:
        start(tmp_path, config_of(), room_of=tight)
    assert refused.value.reason == DOES_NOT_FIT
    assert "set training.sequenceLength to" in str(refused.value)


def test_the_measured_batch_keeps_packed_rows_apart_by_ids_that_the_model_has() -> None:
    packed = full_batch(rows=2, length=7, num_ids=5, is_packed=True, device=torch.device("cpu"))
    assert packed.position_ids is not None
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]] * 2
    assert packed.ids.max() == 4
    assert packed.num_trained_tokens == 2 * 6


def test_a_real_pass_is_measured_and_leaves_no_trace_in_what_is_learnt(
    tmp_path: Path, model_dir: Path, start: Start, longest: int
) -> None:
    """Dropout is on: a pass that took random numbers of the run would change its weights."""
    config = make_config(
        tuning={"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.2}},
        training={"microBatchSize": 2},
    )
    observer = Listener()
    tight = room_for(2, longest=longest, model_dir=model_dir)
    start(tmp_path / "measured", config, observer=observer, room_of=tight)
    start(tmp_path / "plain", config)
    (measured,) = planned(observer, "measured")
    assert measured["measuredBytes"] > 0
    assert measured["microBatchSize"] == 2
    weights = [adapter_of(tmp_path / name) for name in ("measured", "plain")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_was_planned_follows_the_measured_pass(
    model_dir: Path, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = plan_of(2, longest, model_dir)
    found = micro_batch_of(config_of(), longest=longest, room=two.peak, on_gpu=False)
    form = choose_base_form(found.config.tuning, device=torch.device("cpu"))
    assert found.plan(folder=model_dir, form=form) == 2
    measuring(monkeypatch, [two.of_pass // 4])
    embeddings = torch.nn.Embedding(64, 4)
    model: Any = SimpleNamespace(get_input_embeddings=lambda: embeddings)
    path: Any = SimpleNamespace(selects=True)
    assert found.correct(path, model=model) == 4
    told = found.planned()
    assert told is not None
    assert told.rows == 4
    four = plan_of(4, longest, model_dir).with_pass_scaled(two.of_pass // 4 / two.of_pass)
    assert told.num_bytes == four.peak + LIBRARIES
