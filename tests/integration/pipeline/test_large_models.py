"""What QLoRA of a 7B model needs, by the plan; tests/benchmarks/large_models.py has 13B and 30B.

Layers are all alike: the plans of two small numbers of them give that of any number, which the
third one shows. So the test takes seconds where the whole model takes a minute.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.benchmarks.large_models import (
    GIB,
    LIMITS,
    SHAPES,
    Sizes,
    loaded_bytes,
    planner_of,
    sizes_of,
)

from anneal_pipeline.efficiency.inventory import FULL_TUNING_BYTES
from anneal_pipeline.memory.plan import MemoryPlan, moments_bytes

LAYERS = SHAPES["7B"]["num_hidden_layers"]
LENGTH = 512


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[MemoryPlan, Sizes]]:
    """Plans and sizes of one, two and three layers of the 7B shape."""
    found = []
    for layers in (1, 2, 3):
        planner = planner_of("7B", folder=tmp_path_factory.mktemp("model"), layers=layers)
        found.append((planner.plan(rows=1, length=LENGTH), sizes_of(planner)))
    return found


def whole(values: list[int], *, layers: int) -> int:
    """A quantity that is linear in the layers, from its values for one and two of them."""
    return values[0] + (layers - 1) * (values[1] - values[0])


def test_layers_add_up(measured: list[tuple[MemoryPlan, Sizes]]) -> None:
    for values in (
        [plan.peak for plan, _ in measured],
        [loaded_bytes(plan) for plan, _ in measured],
        [sizes.base for _, sizes in measured],
    ):
        assert whole(values, layers=3) == pytest.approx(values[2], rel=0.001)


def test_a_plan_of_a_gpu_is_the_same_again_on_a_cpu_that_repacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes repacks 4-bit weights for the CPU at the first pass: no GPU ever does."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    planner = planner_of("7B", folder=tmp_path, layers=1)
    assert planner.plan(rows=1, length=64) == planner.plan(rows=1, length=64)


def test_a_7b_model_fits_the_smallest_stated_gpu_at_a_quarter_of_full_fine_tuning(
    measured: list[tuple[MemoryPlan, Sizes]],
) -> None:
    peak = whole([plan.peak for plan, _ in measured], layers=LAYERS)
    base = whole([sizes.base for _, sizes in measured], layers=LAYERS)
    assert base == 6_738_415_616  # as the specification and Llama-2-7B have it
    assert peak < 12 * GIB < LIMITS["7B"]
    assert peak < 0.25 * FULL_TUNING_BYTES * base


def test_a_7b_model_is_loaded_in_four_gib_and_trains_below_one_percent(
    measured: list[tuple[MemoryPlan, Sizes]],
) -> None:
    loaded = whole([loaded_bytes(plan) for plan, _ in measured], layers=LAYERS)
    trainable = whole([sizes.trainable for _, sizes in measured], layers=LAYERS)
    base = whole([sizes.base for _, sizes in measured], layers=LAYERS)
    assert 3.5 * GIB < loaded < 4 * GIB < 8 * GIB
    assert trainable == 39_976_960
    assert trainable / base == pytest.approx(0.0059, abs=1e-4)


def test_the_example_of_the_specification_is_rank_16_over_q_and_v(tmp_path: Path) -> None:
    """8,388,608 of 6,738,415,616, 0.12 %."""
    lora = {"rank": 16, "targetModules": ["q_proj", "v_proj"]}
    planner = planner_of("7B", folder=tmp_path, layers=1, tuning={"lora": lora})
    assert LAYERS * sizes_of(planner).trainable == 8_388_608


def test_moments_are_of_fp32_adapters_and_smaller_in_8_bits(
    measured: list[tuple[MemoryPlan, Sizes]],
) -> None:
    plan, sizes = measured[1]
    assert plan.adapters == plan.gradients == 4 * sizes.trainable
    assert plan.optimizer == 8 * sizes.trainable
    eight = moments_bytes([58_000_000], in_8_bits=True)
    assert moments_bytes([58_000_000], in_8_bits=False) == 464_000_000
    assert eight == pytest.approx(117.8e6, rel=0.001)
