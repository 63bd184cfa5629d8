"""What fits is a pure matter of plans and room: here the plans are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from anneal_pipeline.memory.fit import Setting, find_nearest, largest_rows, refusal
from anneal_pipeline.memory.plan import MemoryPlan, moments_bytes
from anneal_pipeline.memory.room import limit_on_cpu

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
    )


def test_the_peak_is_the_sum_of_the_parts() -> None:
    plan = plan_of(WANTED)
    assert plan.peak == sum(plan.parts().values()) == 420 * MIB


@pytest.mark.parametrize(("room", "rows"), [(500, 8), (480, 4), (200, 1), (150, None)])
def test_the_largest_divisor_that_leaves_a_margin_is_taken(room: int, rows: int | None) -> None:
    found = largest_rows(WANTED, share=16, room=room * MIB, plan_of=plan_of)
    assert (None if found is None else found.rows) == rows


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
    said = refusal(WANTED, plan_of(WANTED), room=300 * MIB, libraries=800 * MIB, nearest=nearest)
    assert said == (
        "The run does not fit: it needs about 1.19 GiB with 8 rows of up to 1024 tokens per "
        "forward pass, most of it for activations (320 MiB), and there are 1.07 GiB; set "
        "training.microBatchSize to 4, which needs about 1.04 GiB"
    )


def test_where_nothing_fits_no_setting_is_named() -> None:
    assert find_nearest(WANTED, share=16, room=90 * MIB, plan_of=plan_of) is None
    said = refusal(WANTED, plan_of(WANTED), room=90 * MIB, libraries=0, nearest=None)
    assert said.endswith("; take a smaller model or more memory")


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
