"""What fits is a pure matter of plans and room: here the plans are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from anneal_pipeline.memory.fit import (
    Nearest,
    Setting,
    Verdict,
    choose,
    find_nearest,
    largest_rows,
    refusal,
)
from anneal_pipeline.memory.plan import MemoryPlan, moments_bytes
from anneal_pipeline.memory.room import Room, limit_on_cpu, room_on_cpu

MIB = 1 << 20
WANTED = Setting(rows=8, length=1024, checkpointing=False)


def plan_of(setting: Setting) -> MemoryPlan:
    """100 MiB held, and per token 10 KiB with checkpointing and 40 KiB without."""
    per_token = (10 if setting.checkpointing else 40) << 10
    return MemoryPlan(
        weights=100 * MIB,
        quantization_state=0,
        adapters=0,
        gradients=0,
        optimizer=0,
        batch=0,
        activations=setting.rows * setting.length * per_token,
        logits=0,
        overhead=0,
        loading=100 * MIB,
    )


def hard_to_load(setting: Setting) -> MemoryPlan:
    """The same, and 400 MiB while it is loaded."""
    return replace(plan_of(setting), loading=400 * MIB)


def test_the_peak_is_the_sum_of_the_parts_of_a_step() -> None:
    plan = plan_of(WANTED)
    assert plan.peak == plan.step == sum(plan.parts().values()) == 420 * MIB


def test_the_peak_is_that_of_loading_where_a_step_needs_less() -> None:
    plan = hard_to_load(replace(WANTED, rows=1))
    assert (plan.step, plan.peak) == (140 * MIB, 400 * MIB)
    assert sum(plan.parts_of_loading().values()) == plan.loading


@pytest.mark.parametrize(("room", "rows"), [(500, 8), (480, 4), (200, 1), (150, None)])
def test_the_largest_divisor_that_leaves_a_margin_is_taken(room: int, rows: int | None) -> None:
    found = largest_rows(WANTED, share=16, room=room * MIB, plan_of=plan_of)
    assert (None if found is None else found.rows) == rows


@pytest.mark.parametrize(
    ("room", "may_lower", "rows", "verdict"),
    [
        pytest.param(None, False, 8, Verdict.FITS, id="unknown-room-is-enough"),
        pytest.param(490, False, 8, Verdict.FITS, id="with-the-margin-left"),
        pytest.param(400, False, 8, Verdict.IS_TIGHT, id="within-the-plan-s-error"),
        pytest.param(400, True, 4, Verdict.FITS, id="rather-fewer-rows-than-tight"),
        pytest.param(360, False, 8, Verdict.DOES_NOT_FIT, id="asked-for-and-not-lowered"),
        pytest.param(150, True, 1, Verdict.IS_TIGHT, id="one-row-is-tight"),
        pytest.param(120, True, 1, Verdict.DOES_NOT_FIT, id="not-even-one-row"),
    ],
)
def test_what_a_run_takes_of_what_it_was_asked_for(
    room: int | None, may_lower: bool, rows: int, verdict: Verdict
) -> None:
    size = None if room is None else room * MIB
    found = choose(WANTED, share=16, may_lower=may_lower, room=size, plan_of=plan_of)
    assert (found.setting.rows, found.verdict) == (rows, verdict)
    assert found.plan == plan_of(found.setting)


@pytest.mark.parametrize(
    ("room", "rows", "verdict"),
    [
        pytest.param(500, 8, Verdict.FITS, id="both-leave-their-margin"),
        pytest.param(480, 4, Verdict.FITS, id="the-step-of-8-rows-does-not"),
        pytest.param(410, 4, Verdict.IS_TIGHT, id="fewer-rows-would-not-help-loading"),
        pytest.param(340, 4, Verdict.DOES_NOT_FIT, id="it-cannot-be-loaded"),
    ],
)
def test_rows_are_lowered_for_the_step_alone(room: int, rows: int, verdict: Verdict) -> None:
    found = choose(WANTED, share=16, may_lower=True, room=room * MIB, plan_of=hard_to_load)
    assert (found.setting.rows, found.verdict) == (rows, verdict)


def test_a_measured_pass_is_of_a_loaded_model() -> None:
    assert hard_to_load(WANTED).with_pass_scaled(1.0).peak == 420 * MIB
    assert hard_to_load(replace(WANTED, rows=1)).with_pass_scaled(1.0).peak == 140 * MIB


def test_no_setting_of_a_step_is_tried_where_the_model_cannot_be_loaded() -> None:
    asked: list[Setting] = []

    def plan(setting: Setting) -> MemoryPlan:
        asked.append(setting)
        return hard_to_load(setting)

    assert find_nearest(WANTED, share=16, room=340 * MIB, plan_of=plan) is None
    assert asked == [WANTED]


def test_rows_are_named_where_loading_is_tight_and_the_step_alone_does_not_fit() -> None:
    """What is admitted when it is set by hand is advised as well."""
    found = find_nearest(WANTED, share=16, room=390 * MIB, plan_of=hard_to_load)
    assert found is not None
    assert found.setting.rows == 4
    by_hand = choose(found.setting, share=16, may_lower=False, room=390 * MIB, plan_of=hard_to_load)
    assert by_hand.verdict is Verdict.IS_TIGHT


def test_a_pass_that_took_twice_as_much_doubles_only_what_a_pass_takes() -> None:
    plan = plan_of(WANTED)
    twice = plan.with_pass_scaled(2.0)
    assert twice.peak - plan.peak == plan.of_pass == 320 * MIB


@pytest.mark.parametrize(
    ("room", "instruction"),
    [
        (300, "set training.microBatchSize to 4"),
        (145, "set training.microBatchSize to 2 and training.gradientCheckpointing to true"),
        (
            121,
            "set training.microBatchSize to 1, training.gradientCheckpointing to true and "
            "training.sequenceLength to 512",
        ),
    ],
)
def test_the_nearest_is_rows_first_then_checkpointing_then_length(
    room: int, instruction: str
) -> None:
    found = find_nearest(WANTED, share=16, room=room * MIB, plan_of=plan_of)
    assert found is not None
    assert found.change_from(WANTED) == instruction
    assert plan_of(found.setting).peak * 1.15 <= room * MIB


def test_a_refusal_names_need_room_and_remedy_in_one_sentence() -> None:
    nearest = find_nearest(WANTED, share=16, room=300 * MIB, plan_of=plan_of)
    room = Room(limit=1100 * MIB, libraries=600 * MIB, others=200 * MIB)
    assert room.free == 300 * MIB
    said = refusal(WANTED, plan_of(WANTED), room=room, nearest=nearest)
    assert said == (
        "The run does not fit: it needs about 1.19 GiB with 8 rows of up to 1024 tokens per "
        "forward pass, most of it for the libraries (600 MiB), and there are 1.07 GiB; set "
        "training.microBatchSize to 4, which needs about 1.04 GiB"
    )


def test_where_nothing_fits_no_setting_is_named() -> None:
    assert find_nearest(WANTED, share=16, room=90 * MIB, plan_of=plan_of) is None
    room = Room(limit=90 * MIB, libraries=0)
    said = refusal(WANTED, plan_of(WANTED), room=room, nearest=None)
    assert said.endswith("; take a smaller model or more memory")
    taken = refusal(WANTED, plan_of(WANTED), room=replace(room, others=90 * MIB), nearest=None)
    assert taken.endswith("; give it more memory"), "no model is small enough"


def test_what_cannot_be_loaded_is_told_from_what_cannot_be_trained() -> None:
    one = replace(WANTED, rows=1)
    nearest = Nearest(setting=one, plan=plan_of(one), base={"tuning.quantization.type": "nf4"})
    room = Room(limit=500 * MIB, libraries=200 * MIB)
    assert refusal(one, hard_to_load(one), room=room, nearest=nearest) == (
        "The model cannot be loaded: that needs about 600 MiB, most of it for the work on one "
        "weight (300 MiB), and there are 500 MiB; set tuning.quantization.type to nf4, which needs "
        "about 340 MiB"
    )


def test_moments_in_8_bits_are_a_quarter_but_for_small_parameters() -> None:
    assert moments_bytes([1 << 20, 100], in_8_bits=False) == (8 << 20) + 800
    assert moments_bytes([1 << 20, 100], in_8_bits=True) == 2 * ((1 << 20) + (4 << 12)) + 800


@pytest.mark.parametrize(
    ("limit", "want"), [("max", 4096 << 10), ("1048576", 1 << 20), ("99999999999", 4096 << 10)]
)
def test_the_container_or_the_machine_is_the_limit(tmp_path: Path, limit: str, want: int) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4096 kB\n")
    assert limit_on_cpu(cgroup_root=tmp_path, proc=tmp_path) == want


def test_an_unknown_limit_is_none(tmp_path: Path) -> None:
    assert limit_on_cpu(cgroup_root=tmp_path, proc=tmp_path) is None


CGROUP_V1 = {
    "memory/memory.limit_in_bytes": "8388608",
    "memory/memory.usage_in_bytes": "5242880",
    "memory/memory.stat": "cache 9\ninactive_file 1\ntotal_inactive_file 1048576\n",
}
CGROUP_V2 = {
    "memory.max": "8388608",
    "memory.current": "5242880",
    "memory.stat": "anon 9\ninactive_file 1048576\n",
}


@pytest.mark.parametrize("files", [CGROUP_V1, CGROUP_V2], ids=["v1", "v2"])
def test_ranks_share_what_a_container_has_left(tmp_path: Path, files: dict[str, str]) -> None:
    """Of 8 MiB are 5 in use, one of them droppable pages of files: 4 are left for two ranks."""
    for name, text in {**files, "meminfo": "MemAvailable: 999999 kB\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    room = room_on_cpu(num_processes=2, cgroup_root=tmp_path, proc=tmp_path)
    assert room.free == 2 << 20
    assert room.limit == (2 << 20) + room.libraries
