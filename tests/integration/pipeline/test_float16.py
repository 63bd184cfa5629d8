"""Training in float16 with loss scaling: as good as fp32, over overflows, kills and damaged rows.

A CPU refuses float16 for users. Here the type is given past that rule, so that the whole path runs
where there is no GPU: frozen base and products in float16, adapters and their gradients in fp32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.pipeline.mishaps import config_of, poisoned_model, told
from tests.integration.pipeline.test_exact_resume import final_state, run_killed_at

from anneal_pipeline.errors import UserError
from anneal_pipeline.model import loading
from anneal_pipeline.model.adapters import frozen_base, trainable_parameters
from anneal_pipeline.observer import EVENT_OVERFLOW
from anneal_pipeline.training import loss_scaling
from anneal_pipeline.training.diagnoses.gradients import OVERFLOWS_MANY
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.runaway import WINDOW

CPU = torch.device("cpu")
METHODS = ("lora", "qlora")
NEAR = 0.003
"""Nats per token between the losses of a step in float16 and in fp32."""
FITTING = 2.0**10
"""A scale at which nothing overflows in the tiny model."""
TOO_LARGE = 2.0**22
"""A first scale that overflows a few times before it fits."""
ALL = -1
HEAVY = 0.5
"""More than a trained token weighs in any step of these rows at the least scale."""


@pytest.fixture
def past_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "compute_dtype", lambda wanted, **_: getattr(torch, wanted))


@pytest.fixture
def first_scale(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda scale: monkeypatch.setattr(loss_scaling, "FIRST_SCALE", scale)


@pytest.fixture
def overflow_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gradients of batches with a token overflow at any scale, whose losses are numbers.

    Those of others do where a token of theirs weighs as much as in no step.
    """
    backward = LogitsPath.backward

    def apply(token: int) -> None:
        def overflowing(self: Any, batch: Any, **options: Any) -> float:
            loss = backward(self, batch, **options)
            weight = float(options["weigh"](torch.ones(())))
            if token == ALL or weight > HEAVY or (batch.ids == token).any():
                for parameter in trainable_parameters(self._model).values():
                    assert parameter.grad is not None
                    parameter.grad.fill_(float("inf"))
            return loss

        monkeypatch.setattr(LogitsPath, "backward", overflowing)

    return apply


def tuning(method: str = "lora", compute: str = "float16") -> dict[str, Any]:
    return {
        "method": method,
        "lora": {"rank": 4, "dropout": 0.1},
        "quantization": {"computeDtype": compute},
    }


def saved_state(root: Path, step: int) -> dict[str, Any]:
    [folder] = (root / "checkpoints").glob(f"step-{step:06d}-*")
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def saved_adapter(root: Path, step: int) -> dict[str, torch.Tensor]:
    [folder] = (root / "checkpoints").glob(f"step-{step:06d}-*")
    return load_file(folder / "adapter.safetensors")


def test_on_a_cpu_it_is_refused_before_the_data_are_prepared(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        kit.run(tmp_path, config_of(kit, tuning=tuning()), model_dir=model_dir, rows=rows)
    assert caught.value.reason == "QuantizationUnavailable"
    assert str(caught.value) == (
        "tuning.quantization.computeDtype float16 cannot be used: it is for GPUs; use auto or "
        "float32 on a CPU"
    )
    assert not (tmp_path / "out" / "data").exists()


def test_whole_modules_are_refused_with_it_and_auto_takes_fp32_for_them(
    kit: ModuleType, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an older GPU. Their gradients would be in float16, which no scaler divides."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)

    def chosen(compute: str, modules: list[str]) -> torch.dtype:
        own = tuning(compute=compute)
        own["lora"]["modulesToSave"] = modules
        config = config_of(kit, tuning=own)
        return loading.choose_compute(config, folder=model_dir, device=torch.device("cuda"))

    assert chosen("auto", []) == chosen("float16", []) == torch.float16
    assert chosen("auto", ["lm_head"]) == torch.float32
    with pytest.raises(UserError, match=r"it cannot hold the gradients of tuning.lora.modulesToSa"):
        chosen("float16", ["lm_head"])


@pytest.mark.usefixtures("past_the_rule")
@pytest.mark.parametrize("method", METHODS)
def test_adapters_are_fp32_over_a_base_in_its_design(
    kit: ModuleType, model_dir: Path, method: str
) -> None:
    config = config_of(kit, tuning=tuning(method))
    tuned = loading.load_tuned_model(config, folder=model_dir, device=CPU)
    assert tuned.compute == torch.float16
    assert {p.dtype for p in trainable_parameters(tuned.model).values()} == {torch.float32}
    base = {parameter.dtype for parameter in frozen_base(tuned.model)}
    assert base == {torch.float16} | ({torch.uint8} if method == "qlora" else set())


@pytest.mark.usefixtures("past_the_rule")
@pytest.mark.parametrize("method", METHODS)
def test_a_whole_run_learns_as_in_fp32(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    first_scale: Callable[[float], None],
    method: str,
) -> None:
    """From loading to the answers and the check of the export."""
    first_scale(FITTING)
    losses, held_out = {}, {}
    for compute in ("float32", "float16"):
        root, observer = tmp_path / compute, kit.RecordingObserver()
        config = kit.make_config(
            tuning=tuning(method, compute),
            training={"maxSteps": 12, "microBatchSize": 2, "learningRate": 0.003},
        )
        kit.run(root, config, model_dir=model_dir, rows=rows, observer=observer)
        losses[compute] = [report.loss for report in observer.steps]
        held_out[compute] = [done.metrics["loss"] for done in observer.evaluations]
        assert [report.step for report in observer.steps] == list(range(1, 13))
        assert told(observer) == []
        exported = load_file(root / "out" / "artifacts" / "adapter" / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in exported.values()} == {torch.float32}
        assert all(torch.isfinite(tensor).all() for tensor in exported.values())
    assert losses["float16"] != losses["float32"], "it is another type"
    assert losses["float16"] == pytest.approx(losses["float32"], abs=NEAR)
    assert held_out["float16"] == pytest.approx(held_out["float32"], abs=NEAR)
    assert losses["float16"][-1] < losses["float16"][0] - 30 * NEAR
    assert held_out["float16"][-1] < held_out["float16"][0] - 30 * NEAR
    assert saved_state(tmp_path / "float16", 12)["scaler"]["scale"] == FITTING
    assert saved_state(tmp_path / "float32", 12)["scaler"] == {}


@pytest.mark.usefixtures("past_the_rule")
@pytest.mark.parametrize("method", METHODS)
def test_an_overflow_leaves_the_step_out_halves_the_scale_and_training_goes_on(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    first_scale: Callable[[float], None],
    method: str,
) -> None:
    """Pitfall: fp16 compute dtype overflows."""
    first_scale(TOO_LARGE)
    observer = kit.RecordingObserver()
    config = config_of(
        kit,
        tuning=tuning(method),
        training={"maxSteps": 16},
        checkpoint={"everySteps": 1, "keep": 20},
    )
    kit.run(tmp_path, config, model_dir=model_dir, rows=rows, observer=observer)
    last = saved_state(tmp_path, 16)
    overflows = told(observer, EVENT_OVERFLOW)
    left_out = [int(message.split()[1]) for message in overflows]
    assert told(observer) == [], "nothing to recover from"
    assert overflows == [
        f"Step {step} moves nothing: its gradients overflow in float16; the loss scale is halved "
        f"to {TOO_LARGE / 2**times:g}"
        for times, step in enumerate(left_out, start=1)
    ]
    assert 1 in left_out
    assert len(left_out) < 9
    for step in range(2, 17):
        before, after = saved_adapter(tmp_path, step - 1), saved_adapter(tmp_path, step)
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        assert bool(moved) == (step not in left_out), f"step {step}"
    assert [report.step for report in observer.steps] == list(range(1, 17)), "each is a step"
    trained = {report.step: report.num_trained_tokens for report in observer.steps}
    assert [step for step, count in trained.items() if not count] == left_out
    assert last["num_trained_tokens"] == sum(trained.values())
    assert last["overflows"] == left_out[-OVERFLOWS_MANY:]
    assert len(last["grad_norms"]) == min(WINDOW + 1, 16 - len(left_out))
    assert last["scaler"]["scale"] == TOO_LARGE / 2 ** len(left_out)
    assert observer.steps[-1].loss < observer.steps[0].loss - 30 * NEAR


@pytest.mark.usefixtures("past_the_rule")
@pytest.mark.parametrize("method", METHODS)
def test_killed_among_overflows_and_after_them_it_ends_bit_equal(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    first_scale: Callable[[float], None],
    method: str,
) -> None:
    first_scale(TOO_LARGE)
    config = kit.make_config(
        tuning=tuning(method),
        training={"maxSteps": 8, "microBatchSize": 2},
        dataset={"split": {"train": 0.9, "validation": 0.1}},
        evaluation={"everySteps": 4, "numGenerations": 0, "baseline": False},
        checkpoint={"everySteps": 2},
        export={"verify": False},
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kit.run(whole, config, model_dir=model_dir, rows=rows)
    taken = run_killed_at(kit, killed, config, model_dir=model_dir, rows=rows, steps=[3, 5])
    assert [steps[0] for steps in taken] == [1, 3, 5]
    steps = saved_state(whole, 8)["overflows"]
    assert steps[0] <= 2, "before the first kill"
    assert steps[-1] >= 3, "after it"
    assert final_state(killed) == final_state(whole)


@pytest.mark.usefixtures("past_the_rule")
def test_a_rank_without_a_row_takes_part_in_the_first_step(
    kit: ModuleType, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(kit, tuning=tuning())
    tuned = loading.load_tuned_model(config, folder=model_dir, device=CPU)
    optimizer = AdapterOptimizer(
        config.training,
        model=tuned.model,
        compute=tuned.compute,
        ranks=Ranks(rank=1, world_size=1, device=CPU),
    )

    def of_the_others(self: Ranks, parameters: list[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, loss_scaling.FIRST_SCALE)

    monkeypatch.setattr(Ranks, "sum_gradients", of_the_others)
    outcome = optimizer.gather(LogitsPath(tuned.model), [])
    assert outcome.grad_norm == pytest.approx(tuned.num_trainable**0.5)


@pytest.mark.usefixtures("past_the_rule")
def test_a_loss_that_is_no_number_is_no_overflow_and_leaves_the_scale_alone(
    kit: ModuleType, model_dir: Path, tmp_path: Path
) -> None:
    data = [kit.chat("Is ~ a wave?", "It is."), *kit.sums(11)]
    path = kit.write_rows(tmp_path / "rows.jsonl", data)
    folder = poisoned_model(kit, model_dir, tmp_path / "model", text="~")
    observer = kit.RecordingObserver()
    config = config_of(kit, tuning=tuning(), training={"maxSteps": 4})
    kit.run(tmp_path, config, model_dir=folder, rows=path, observer=observer)
    [message] = told(observer)
    assert "left out from now on: rows.jsonl:1 (these rows cause it alone)" in message
    state = saved_state(tmp_path, 4)
    assert (state["scaler"]["scale"], state["overflows"]) == (loss_scaling.FIRST_SCALE, [])


@pytest.mark.usefixtures("past_the_rule")
@pytest.mark.parametrize(
    ("mode", "end"),
    [
        (
            "recover",
            "in float16 with a loss scale that has fallen to 1, and no row stands out; set ",
        ),
        ("fail", "lower training.learningRate, or look for damaged rows; or set "),
    ],
)
def test_a_scale_that_falls_without_end_fails_with_what_to_do(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    first_scale: Callable[[float], None],
    overflow_at: Callable[[int], None],
    mode: str,
    end: str,
) -> None:
    first_scale(8.0)
    overflow_at(ALL)
    observer = kit.RecordingObserver()
    config = config_of(kit, tuning=tuning(), training={"recovery": {"nan": mode}})
    with pytest.raises(UserError) as caught:
        kit.run(tmp_path, config, model_dir=model_dir, rows=rows, observer=observer)
    assert caught.value.reason == "NonFiniteLoss"
    assert f"at step 4 with learning rate 0.01{', ' if mode == 'recover' else '; '}{end}" in str(
        caught.value
    )
    assert str(caught.value).endswith(
        "set tuning.quantization.computeDtype to bfloat16, or float32 where the GPU lacks it"
    )
    assert [message.split()[-1] for message in told(observer, EVENT_OVERFLOW)] == ["4", "2", "1"]
    assert not (tmp_path / "out" / "artifacts").exists()


@pytest.mark.usefixtures("past_the_rule")
def test_activations_that_overflow_in_every_row_end_with_the_other_type_as_a_way_out(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    folder = poisoned_model(kit, model_dir, tmp_path / "model", text="What")
    observer = kit.RecordingObserver()
    with pytest.raises(
        UserError, match=r"was halved 3 times already .* or set .* to bfloat16, or f"
    ):
        kit.run(
            tmp_path,
            config_of(kit, tuning=tuning()),
            model_dir=folder,
            rows=rows,
            observer=observer,
        )
    assert told(observer, EVENT_OVERFLOW) == []


@pytest.mark.usefixtures("past_the_rule")
def test_a_row_that_overflows_at_the_least_scale_is_left_out(
    kit: ModuleType,
    model_dir: Path,
    tmp_path: Path,
    first_scale: Callable[[float], None],
    overflow_at: Callable[[int], None],
) -> None:
    data = [*kit.sums(5), kit.chat("Is ~ a wave?", "It is."), *kit.sums(6)]
    path = kit.write_rows(tmp_path / "rows.jsonl", data)
    [token] = kit.make_tokenizer()("~", add_special_tokens=False)["input_ids"]
    first_scale(loss_scaling.SCALE_MIN)
    overflow_at(token)
    observer = kit.RecordingObserver()
    config = config_of(kit, tuning=tuning(), training={"maxSteps": 4})
    kit.run(tmp_path, config, model_dir=model_dir, rows=path, observer=observer)
    [message] = told(observer)
    assert "left out from now on: rows.jsonl:6 (these rows cause it alone)" in message
    assert min(report.num_trained_tokens for report in observer.steps) > 0
