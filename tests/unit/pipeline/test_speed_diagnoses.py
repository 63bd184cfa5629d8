"""Steps that wait for their rows, and products that the hardware is slow at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from anneal_pipeline.device import cpu_has_bfloat16
from anneal_pipeline.diagnosis import Diagnosis
from anneal_pipeline.training.diagnoses.facts import StepFacts, StepSeconds
from anneal_pipeline.training.diagnoses.speed import (
    SlowProducts,
    SpeedWatch,
    make_speed_watch,
    slow_products,
)
from anneal_pipeline.training.runaway import WINDOW
from anneal_pipeline.training.step_clock import StepClock


def diagnoses(steps: list[StepSeconds], *, slow: SlowProducts | None = None) -> list[Diagnosis]:
    watch = SpeedWatch(slow=slow, where="in float32 on cuda:0 with the base in 4 bits")
    facts = (
        StepFacts(
            step=step,
            losses=[],
            grad_norms=[],
            overflows=[],
            rate=1e-4,
            peak_rate=1e-4,
            memory_bytes=0,
            num_tokens=500,
            seconds=seconds,
        )
        for step, seconds in enumerate(steps, start=1)
    )
    return [found for seen in facts for found in watch.after_step(seen)]


def seconds(data: float, gradients: float = 0.6) -> StepSeconds:
    return StepSeconds(data=data, gradients=gradients, update=0.1)


def test_rows_that_take_much_of_a_step_are_told_with_the_times() -> None:
    [found] = diagnoses([seconds(0.3)] * WINDOW)
    assert found.row == "S22"
    assert "30% of a step is spent on laying out its rows (0.3 s, beside 0.7 s" in found.symptom
    assert "compute.cpus" in found.fix


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([seconds(0.1)] * 30, id="a small share"),
        pytest.param([seconds(0.3)] * (WINDOW - 1), id="too few steps"),
        pytest.param([seconds(30.0), *[seconds(0.01)] * 30], id="one pause of the machine"),
        pytest.param([StepSeconds(data=0.01, gradients=0.01, update=0.0)] * 30, id="short steps"),
    ],
)
def test_rows_that_are_laid_out_fast_enough_are_not_told(steps: list[StepSeconds]) -> None:
    assert diagnoses(steps) == []


def test_slow_products_are_told_with_the_speed_of_the_run() -> None:
    [found] = diagnoses([seconds(0.3 - 0.2)] * WINDOW, slow=SlowProducts(cause="why", fix="what"))
    assert str(found) == (
        "Training does 625 tokens/s over the 10 steps to step 10, computing in float32 on cuda:0 "
        "with the base in 4 bits: why; what"
    )
    assert found.row == "S14"


@pytest.mark.parametrize(
    ("device", "compute", "asked", "has_bfloat16", "cause"),
    [
        ("cuda", torch.float32, "float32", True, "leaves the units for 16-bit products idle"),
        ("cuda", torch.float32, "float32", False, None),
        ("cuda", torch.float32, "auto", False, "this GPU has no bfloat16"),
        ("cpu", torch.bfloat16, "bfloat16", False, "no instructions for bfloat16"),
        ("cuda", torch.bfloat16, "auto", True, None),
        ("cuda", torch.float16, "auto", False, None),
        ("cpu", torch.float32, "auto", False, None),
        ("cpu", torch.bfloat16, "bfloat16", True, None),
        ("cpu", torch.bfloat16, "bfloat16", None, None),
    ],
)
def test_products_are_slow_where_the_hardware_has_no_such_type(
    kit: ModuleType,
    device: str,
    compute: torch.dtype,
    asked: str,
    has_bfloat16: bool | None,
    cause: str | None,
) -> None:
    config = kit.make_config(tuning={"quantization": {"computeDtype": asked}})
    found = slow_products(config, device=device, compute=compute, has_bfloat16=has_bfloat16)
    assert found is None if cause is None else found is not None and cause in found.cause


def test_float32_on_a_cpu_is_advised_where_memory_holds_it(kit: ModuleType) -> None:
    """The memory plan may have asked for bfloat16."""
    config = kit.make_config(tuning={"quantization": {"computeDtype": "bfloat16"}})
    found = slow_products(config, device="cpu", compute=torch.bfloat16, has_bfloat16=False)
    assert found is not None
    assert found.fix.endswith("if memory holds the base in 32 bits")


@pytest.mark.parametrize(("has", "is_told"), [(False, False), (True, True)])
def test_a_gpu_is_asked_whether_it_has_bfloat16(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch, has: bool, is_told: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has)
    watch = make_speed_watch(
        kit.make_config(tuning={"quantization": {"computeDtype": "float32"}}),
        device=torch.device("cuda"),
        compute=torch.float32,
        method="lora",
    )
    assert (watch.slow is not None) is is_told


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("flags : fpu avx512f avx512_bf16 sse\n", True),
        ("Features : fp asimd bf16 i8mm\n", True),
        ("flags : fpu avx2 avx512f\n", False),
    ],
)
def test_a_cpu_says_whether_it_has_bfloat16(tmp_path: Path, text: str, has: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_has_bfloat16(tmp_path) is has


def test_where_nothing_tells_of_the_cpu_that_is_not_known(tmp_path: Path) -> None:
    assert cpu_has_bfloat16(tmp_path) is None


def test_the_time_of_a_step_is_told_apart_with_what_was_tried_in_vain() -> None:
    times: Iterator[float] = iter([5.0, 6.0, 10.0, 10.5, 13.0, 13.25])
    clock = StepClock(clock=lambda: next(times))
    clock.begin()
    clock.count("data")
    clock.count("gradients")
    clock.count("data")
    clock.count("gradients")
    clock.count("update")
    found = clock.seconds()
    assert found == StepSeconds(data=1.5, gradients=6.5, update=0.25)
    assert found.total == 8.25
