"""Every diagnosis: a synthetic run that has it, and one that is healthy."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from anneal_pipeline.training.diagnoses.beginning import of_batch
from anneal_pipeline.training.diagnoses.diagnostician import Diagnostician
from anneal_pipeline.training.diagnoses.facts import Planned, StepFacts, StepSeconds
from anneal_pipeline.training.diagnoses.held_out import against_base, of_evaluation
from anneal_pipeline.training.diagnoses.memory import GROWTH_STEPS, MemoryWatch
from anneal_pipeline.training.diagnoses.speed import SpeedWatch
from anneal_pipeline.training.ranks import Ranks

FALLING = [3.0 - n / 50 for n in range(80)]


def facts(losses: list[float], **changes: Any) -> StepFacts:
    values: dict[str, Any] = {
        "step": len(losses),
        "losses": losses,
        "grad_norms": [1.0] * 11,
        "overflows": [],
        "rate": 2e-4,
        "peak_rate": 2e-4,
        "memory_bytes": 1 << 30,
        "num_tokens": 400,
        "seconds": StepSeconds(data=0.01, gradients=0.8, update=0.1),
    }
    return StepFacts(**{**values, **changes})


def doctor(
    kit: ModuleType,
    *,
    compute: torch.dtype = torch.float32,
    memory_in_use: Callable[[], int] = lambda: 0,
    planned: Planned | None = None,
    **sections: Any,
) -> Any:
    return Diagnostician(
        config=kit.make_config(**sections),
        compute=compute,
        planned=planned,
        ranks=Ranks(rank=0, world_size=1, device=torch.device("cpu")),
        memory=MemoryWatch(
            planned=planned,
            num_trainable=2_000,
            num_parameters=1_000_000,
            memory_in_use=memory_in_use,
        ),
        speed=SpeedWatch(slow=None, where=""),
    )


def at_start(kit: ModuleType, **sections: Any) -> list[Any]:
    return list(doctor(kit, **sections).of_batch())


@pytest.mark.parametrize(
    ("seen", "row", "words"),
    [
        pytest.param(facts([11.2]), "S2", "first training loss is 11.2 .*chat template", id="S2"),
        pytest.param(
            facts([2.4] * 70), "S7", "not fallen in 50 steps: mean 2.40.*rank to 8", id="S7"
        ),
        pytest.param(
            facts([2.0], grad_norms=[1e-9]), "S9", "norm is 1e-09 at step 1.*all-linear", id="S9"
        ),
        pytest.param(
            facts(FALLING, grad_norms=[2.0] * 10 + [40.0]),
            "S10",
            "norm is 40 at step 80, 2 on average before; it is clipped to 1",
            id="S10",
        ),
        pytest.param(
            facts([*FALLING, 5.0]), "S15", "jumped to 5.00 at step 81, from a mean of", id="S15"
        ),
        pytest.param(
            facts([1.0, 1.2] * 5 + [0.2, 4.0] * 5),
            "S19",
            r"swings between 0.20 and 4.00 .*learningRate from 0.01 to 0.003",
            id="S19",
        ),
    ],
)
def test_a_diagnosis_names_symptom_cause_and_fix_with_numbers(
    kit: ModuleType, seen: StepFacts, row: str, words: str
) -> None:
    found = {d.row: str(d) for d in doctor(kit).after_step(seen)}
    assert re.search(words, found[row])


def test_a_healthy_run_hears_nothing(kit: ModuleType) -> None:
    well = doctor(kit)
    said = [d for n in range(1, len(FALLING)) for d in well.after_step(facts(FALLING[:n]))]
    at_rest = [0.02] * 70
    said += list(well.after_step(facts(at_rest)))
    said += list(well.after_step(facts([2.4] * 70, rate=1e-6)))
    said += list(of_evaluation({"loss": 1.6}, step=40, epochs=1.0, losses=FALLING, earlier=[1.7]))
    assert [*said, *at_start(kit)] == []


def test_a_spike_in_float16_is_blamed_on_it(kit: ModuleType) -> None:
    half = doctor(kit, compute=torch.float16)
    [spike] = [d for d in half.after_step(facts([*FALLING, 5.0])) if d.row == "S15"]
    assert "bfloat16" in spike.fix


def test_repeated_overflows_in_float16_are_told_and_a_few_are_not(kit: ModuleType) -> None:
    half = doctor(kit, compute=torch.float16)
    few = [facts(FALLING[:60], overflows=steps) for steps in ([1, 2, 3, 60], [1, 2, 3, 4, 10, 60])]
    assert [d for seen in few for d in half.after_step(seen)] == []
    between = facts(FALLING[:58], overflows=[50, 52, 54, 56, 57])
    assert list(half.after_step(between)) == [], "told at an overflow, not after it"
    [many] = half.after_step(facts(FALLING[:60], overflows=[50, 52, 54, 56, 60]))
    assert many.row == "QP4"
    assert many.symptom == (
        "5 of the 11 steps to step 60 moved nothing, because their gradients overflowed in float16"
    )
    assert "to bfloat16, or float32 where the GPU lacks it" in many.fix


def test_a_step_that_overflowed_has_no_gradient_to_judge(kit: ModuleType) -> None:
    half = doctor(kit, compute=torch.float16)
    assert list(half.after_step(facts([2.0], grad_norms=[], overflows=[1]))) == []


def test_an_alpha_too_high_for_the_rank_is_blamed_for_large_gradients(kit: ModuleType) -> None:
    steep = doctor(kit, tuning={"lora": {"rank": 4, "alpha": 64.0}})
    [large] = steep.after_step(facts([2.0], grad_norms=[50.0]))
    assert (large.cause, large.fix) == (
        "alpha is 16 times the rank",
        "set tuning.lora.alpha to 8",
    )


def test_memory_that_grows_is_told_and_memory_that_varies_is_not(kit: ModuleType) -> None:
    def rows(step: int) -> int:
        return (1 << 30) + (step % 7 << 27)

    steady, leaking = doctor(kit), doctor(kit, memory_in_use=lambda: 3 << 30)
    steps = range(1, 3 * GROWTH_STEPS)
    assert [d for n in steps for d in steady.after_step(facts([1.0], memory_bytes=rows(n)))] == []
    found = [
        d for n in steps for d in leaking.after_step(facts([1.0], memory_bytes=rows(n) + (n << 24)))
    ]
    assert {d.row for d in found} == {"S24"}
    assert "Memory grew from 2.21 to 3.22 GB by step 1, with all that is free" in str(found[0])


def test_memory_that_only_the_heap_holds_is_not_told(kit: ModuleType) -> None:
    """As a heap with holes did until step 61 of a run; all but 2.7 of the 5.3 GB were free."""
    asked: list[int] = []

    def in_use() -> int:
        asked.append(1)
        return int(2.7e9)

    of_a_heap = doctor(kit, memory_in_use=in_use)
    steps = range(1, 3 * GROWTH_STEPS)
    told = [
        d
        for n in steps
        for d in of_a_heap.after_step(facts([1.0], memory_bytes=int((3 + 0.05 * n) * 1e9)))
    ]
    assert told == []
    assert 1 <= len(asked) <= 3, "not at every step"


def test_memory_that_levels_off_after_two_jumps_is_not_told(kit: ModuleType) -> None:
    """As a heap grows with the longest rows: these are the figures of a run that kept nothing."""

    def held(step: int) -> int:
        return int((3.07 if step < 27 else 4.02 if step < 42 else 4.59 + step / 1e5) * 1e9)

    of_a_heap = doctor(kit)
    told = [
        d
        for n in range(1, 3 * GROWTH_STEPS)
        for d in of_a_heap.after_step(facts([1.0], memory_bytes=held(n)))
    ]
    assert told == []


@pytest.mark.parametrize(
    ("loss", "epochs", "earlier", "row", "words"),
    [
        (float("nan"), 1.0, [2.0], "S25", "held-out loss is nan at step 40"),
        (4.5, 0.5, [], "S3", "4.50 at step 40, the training loss 1.5"),
        (3.0, 2.0, [2.5, 2.1], "S26", "rose from 2.10 to 3.00 .*earlyStopping"),
    ],
)
def test_held_out_losses_tell_another_kind_of_rows_and_learning_by_heart(
    loss: float, epochs: float, earlier: list[float], row: str, words: str
) -> None:
    [found] = of_evaluation({"loss": loss}, step=40, epochs=epochs, losses=FALLING, earlier=earlier)
    assert found.row == row
    assert re.search(words, str(found))


def test_a_tiny_batch_is_told_before_the_first_step(kit: ModuleType) -> None:
    [found] = at_start(kit, training={"batchSize": 1})
    assert found.row == "S21"
    assert "only 1 row:" in str(found)
    packed = at_start(kit, training={"batchSize": 1, "packing": True})
    assert packed == [], "a packed sequence holds many rows"


def test_many_gpus_with_a_row_each_are_told_and_with_enough_are_not(kit: ModuleType) -> None:
    config = kit.make_config(training={"batchSize": 8})
    [found] = of_batch(config, world_size=8, on_gpu=True, planned=None)
    assert "training.batchSize 8 over 8 GPUs leaves each of them 1 row a step" in found.symptom
    assert "training.batchSize to 64" in found.fix
    for ranks, on_gpu in ((2, True), (8, False)):
        assert list(of_batch(config, world_size=ranks, on_gpu=on_gpu, planned=None)) == []


def test_one_row_at_once_on_a_gpu_with_room_for_more_is_told(kit: ModuleType) -> None:
    config = kit.make_config(training={"batchSize": 8, "microBatchSize": 1})

    def found(rows_with_room: int, *, on_gpu: bool) -> list[Any]:
        planned = Planned(num_bytes=1, rows=1, rows_with_room=rows_with_room)
        return list(of_batch(config, world_size=1, on_gpu=on_gpu, planned=planned))

    [told] = found(4, on_gpu=True)
    assert told.key == "S21.room"
    assert "set it to 4" in told.fix
    assert [found(1, on_gpu=True), found(4, on_gpu=False)] == [[], []]


def test_memory_far_above_the_plan_is_told_unless_only_the_heap_holds_it(kit: ModuleType) -> None:
    planned = Planned(num_bytes=2 << 30, rows=4, rows_with_room=4)
    high = facts([2.0], memory_bytes=5 << 30)
    held, heap = (
        doctor(kit, planned=planned, memory_in_use=lambda size=size: size)
        for size in (5 << 30, 2 << 30)
    )
    [told] = held.after_step(high)
    assert told.row == "S8"
    assert "holds 5.37 GB at step 1, where 2.15 GB were planned" in told.symptom
    assert "only 2,000 of 1,000,000 parameters (0.20%) are trained" in told.cause
    assert list(heap.after_step(high)) == []
    within = doctor(kit, planned=planned, memory_in_use=lambda: 1 << 40)
    assert list(within.after_step(facts([2.0], memory_bytes=int(2.9 * (1 << 30))))) == []


@pytest.mark.parametrize(
    ("losses", "watched", "cause", "fix"),
    [
        pytest.param(
            [2.5] * 20,
            [(10, 1.9), (20, 2.5)],
            "at step 10 it was 6.686, and since",
            "earlyStopping",
        ),
        pytest.param([0.4] * 20, [(20, 2.5)], "is 0.40 against 2.50", "add rows"),
        pytest.param([2.6] * 20, [], "2.60 too: steps so large", "from 0.01 to 0.003, and read"),
    ],
)
def test_a_result_worse_than_its_base_is_told_with_what_it_may_come_from(
    kit: ModuleType, losses: list[float], watched: list[tuple[int, float]], cause: str, fix: str
) -> None:
    base, tuned = ({"loss": loss, "responsePerplexity": e} for loss, e in ((2.0, 7.4), (2.5, 12.2)))
    config = kit.make_config()
    [told] = against_base(base, tuned, config=config, losses=losses, watched=watched)
    assert told.key == "S26.result"
    assert "response perplexity 12.2 against 7.4" in told.symptom
    assert re.search(cause, told.cause)
    assert re.search(fix, told.fix)


def test_a_result_as_good_as_its_base_or_without_one_is_not_told(kit: ModuleType) -> None:
    def of(loss: float) -> dict[str, float]:
        return {"loss": loss, "responsePerplexity": 7.0}

    for base, tuned in ((of(2.0), of(2.01)), (of(2.0), of(1.0)), ({}, of(9.0)), (of(2.0), {})):
        found = against_base(base, tuned, config=kit.make_config(), losses=[2.0], watched=[])
        assert list(found) == []
