"""The micro-batch comes from the memory plan, before loading, and one measured pass after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.pipeline.mishaps import scale_adapters
from tests.unit.pipeline.kit import RecordingObserver, make_config, run, sums, write_rows

from anneal_pipeline import micro_batch, opening
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.errors import DOES_NOT_FIT, StopRequestedError, UserError
from anneal_pipeline.memory.estimate import LighterBase, planning
from anneal_pipeline.memory.fit import MARGIN, Setting
from anneal_pipeline.memory.full_batch import full_batch
from anneal_pipeline.memory.plan import MemoryPlan
from anneal_pipeline.memory.room import Room
from anneal_pipeline.memory.trace import Place
from anneal_pipeline.micro_batch import MEASURED_MARGIN, MicroBatch, RoomOf
from anneal_pipeline.model.four_bit import choose_base_form
from anneal_pipeline.observer import EVENT_MEMORY_PLANNED, EVENT_WARNING
from anneal_pipeline.stages import PipelineResult
from anneal_pipeline.training.ranks import Ranks

LIBRARIES = 500 << 20
PLACE = Place(compute=torch.float32, in_4_bit=False, on_gpu=False)


Start = Callable[..., PipelineResult]


@dataclass
class Listener(RecordingObserver):
    """Keeps the facts of what was planned too."""

    plans: list[dict[str, Any]] = field(default_factory=list)

    def on_event(self, name: str, message: str, fields: Any) -> None:
        super().on_event(name, message, fields)
        if name == EVENT_MEMORY_PLANNED:
            self.plans.append(dict(fields))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", sums(24))


@pytest.fixture
def start(model_dir: Path, rows: Path) -> Start:
    return partial(run, model_dir=model_dir, rows=rows)


@pytest.fixture(autouse=True)
def tightened(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """How often the heap was held tight; really held so, it would slow the other tests down."""
    calls: list[bool] = []
    monkeypatch.setattr(micro_batch, "return_freed_blocks", lambda: calls.append(True))
    return calls


@pytest.fixture
def longest(tmp_path: Path, start: Start) -> int:
    """Tokens of the longest training row."""
    observer = Listener()
    plenty = room_of_bytes(1 << 40)
    start(tmp_path / "probe", config_of(maxSteps=1), observer=observer, room_of=plenty)
    return int(planned(observer)[0]["tokens"])


def config_of(**training: Any) -> PipelineConfig:
    return make_config(training=training)


def room_of_bytes(free: int) -> RoomOf:
    return lambda ranks: Room(limit=free + LIBRARIES, libraries=LIBRARIES)


def room_for(rows: int, *, longest: int, model_dir: Path) -> RoomOf:
    """Room in which the plan of so many rows leaves its margin, and that of more does not."""
    return room_of_bytes(int(plan_of(rows, longest, model_dir).peak * (1 + MARGIN)) + 1)


def plan_of(rows: int, longest: int, model_dir: Path) -> MemoryPlan:
    plans = planning(config_of(), folder=model_dir, place=PLACE)
    return plans(Setting(rows=rows, length=longest, checkpointing=True))


def planned(observer: Listener, kind: str = "planned") -> list[dict[str, Any]]:
    return [plan for plan in observer.plans if plan["kind"] == kind]


def rows_taken(root: Path) -> int:
    """As config.json of the output folder names it."""
    written = json.loads((root / "out" / "config.json").read_text())
    return int(written["training"]["microBatchSize"])


def measuring(monkeypatch: pytest.MonkeyPatch, answers: Sequence[int | Exception | None]) -> None:
    """Let passes take these bytes, one after another."""
    left = list(answers)

    def measure(*_: Any, **__: Any) -> int | None:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(micro_batch, "measure_pass", measure)


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


def test_a_stop_is_looked_for_before_each_plan(
    tmp_path: Path, start: Start, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_load_model", lambda *given: pytest.fail("went on"))
    with pytest.raises(StopRequestedError):
        start(tmp_path, config_of(), observer=Listener(stop_at=0), room_of=room_of_bytes(1 << 40))


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


def state_of(root: Path) -> dict[str, Any]:
    """Of the newest checkpoint."""
    newest = max((root / "checkpoints").glob("step-*/state.json"), key=lambda path: path.parent)
    state: dict[str, Any] = json.loads(newest.read_text())
    return state


def adapter_of(root: Path) -> dict[str, torch.Tensor]:
    folder = root / "out" / "artifacts" / "adapter"
    return load_file(folder / "adapter_model.safetensors")


def micro_batch_of(config: PipelineConfig, *, longest: int, room: int, on_gpu: bool) -> MicroBatch:
    device = torch.device("cuda" if on_gpu else "cpu")
    return MicroBatch(
        config=config,
        length=longest,
        ranks=Ranks(rank=0, world_size=1, device=device),
        room_of=room_of_bytes(int(room * (1 + MARGIN)) + 1),
        observer=RecordingObserver(),
    )


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
