"""Runs whose ranks fall: to the budget, exact over interruptions, and plain LoRA in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.integration.pipeline.mishaps import scale_adapters, told
from tests.integration.pipeline.plain_bases import IDS, base_of, logits
from tests.integration.pipeline.processes import run_ranks, values_of
from tests.integration.pipeline.rank_tasks import train

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.export.adapter import write_adapter
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.beginning import base_alone
from anneal_pipeline.model.loading import TunedModel, load_tokenizer, load_tuned_model
from anneal_pipeline.training.batches import Batch
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.rank_allocator import RankAllocator, make_allocator
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.sequences import StepSequences

CPU = torch.device("cpu")
WEIGHTS = "adapter_model.safetensors"
RANK, INITIAL, NUM_ADAPTERS = 4, 6, 14
STEPS, END = 8, 6
ALLOCATION = {"startShare": 0.2, "endShare": 0.75}


@pytest.fixture(scope="module")
def folder(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for 4-bit blocks, and with weights that matter unequally."""
    made: Path = kit.write_model(tmp_path_factory.mktemp("wide"), hidden=64, spread=0.1)
    return made


@pytest.fixture(scope="module")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(30))
    return path


def config_of(kit: ModuleType, method: str = "lora", **sections: Any) -> PipelineConfig:
    tuning = sections.pop("tuning", {})
    lora = {"rank": RANK, "alpha": 8.0, "dropout": 0.1, "rankAllocation": ALLOCATION}
    config: PipelineConfig = kit.make_config(
        tuning={"method": method, **tuning, "lora": {**lora, **tuning.get("lora", {})}},
        training={"maxSteps": STEPS, **sections.pop("training", {})},
        evaluation={"numGenerations": 0, **sections.pop("evaluation", {})},
        **sections,
    )
    return config


def ranks_of(folder: Path) -> dict[str, int]:
    """Of an exported adapter, by its tensors."""
    weights = load_file(folder / WEIGHTS)
    suffix = ".lora_A.weight"
    return {
        name.removeprefix("base_model.model.").removesuffix(suffix): tensor.shape[0]
        for name, tensor in weights.items()
        if name.endswith(suffix)
    }


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_ranks_fall_over_steps_to_the_budget_and_the_export_is_verified_plain_lora(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path, method: str
) -> None:
    observer = kit.RecordingObserver()
    config = config_of(kit, method, checkpoint={"milestones": [25, 50, 75, 100]})
    done = kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    assert config.export.verify
    means = [report.mean_rank for report in observer.steps]
    assert means[0] == INITIAL
    assert means == sorted(means, reverse=True)
    assert INITIAL > means[1] > means[2] > RANK
    assert set(means[END - 1 :]) == {RANK}
    [told] = [message for name, message in observer.events if name == "ranks-settled"]
    assert told.startswith(f"Ranks are settled at step {END}: 4.0 on average, from ")
    ranks = ranks_of(done.adapter_dir)
    assert sum(ranks.values()) == RANK * NUM_ADAPTERS
    assert len(set(ranks.values())) > 1
    fields = json.loads((done.adapter_dir / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"
    assert fields["rank_pattern"] == ranks
    assert fields["target_modules"] == sorted(ranks)
    assert fields["r"] == max(ranks.values()), "engines size their buffers by it"
    assert fields["lora_alpha"] / fields["r"] == pytest.approx(8.0 / RANK), "their only scale"
    milestones = tmp_path / "out" / "milestones"
    for percent in (25, 50, 75, 100):
        step = STEPS * percent // 100
        at = sum(ranks_of(milestones / f"checkpoint-{percent}pct").values())
        assert at == means[step - 1] * NUM_ADAPTERS
    assert done.base_metrics["loss"] == base_loss(kit, tmp_path, folder, rows, method)


def base_loss(kit: ModuleType, root: Path, folder: Path, rows: Path, method: str) -> float:
    """Of the base under adapters whose ranks stay."""
    data = config_of(kit, method, training={"maxSteps": 1}).to_data()
    del data["tuning"]["lora"]["rankAllocation"]
    config = PipelineConfig.parse(data)
    done = kit.run(root / "plain", config, model_dir=folder, rows=rows)
    return float(done.base_metrics["loss"])


def load(kit: ModuleType, folder: Path, method: str, **lora: Any) -> TunedModel:
    config = config_of(kit, method, tuning={"lora": {"dropout": 0.0, **lora}})
    return load_tuned_model(config, folder=folder, device=CPU)


def train_steps(tuned: TunedModel, config: PipelineConfig, *, steps: int) -> RankAllocator:
    allocator = make_allocator(config.tuning.lora, model=tuned.model, total_steps=STEPS)
    assert allocator is not None
    optimizer = AdapterOptimizer(
        config.training,
        model=tuned.model,
        compute=torch.float32,
        ranks=Ranks(rank=0, world_size=1, device=CPU),
        allocator=allocator,
    )
    path = LogitsPath(tuned.model)
    batch = Batch(ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS)
    for step in range(1, steps + 1):
        optimizer.step(path, [batch], learning_rate=0.02, step=step)
    return allocator


@pytest.mark.parametrize("use_rslora", [False, True], ids=["alpha", "rslora"])
@pytest.mark.parametrize("steps", [1, 3, STEPS], ids=["before", "mid-fall", "after"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_exported_adapter_gives_the_logits_of_the_trained_one_on_the_original_base(
    kit: ModuleType, folder: Path, tmp_path: Path, method: str, steps: int, use_rslora: bool
) -> None:
    config = config_of(kit, method)
    tuned = load(kit, folder, method, useRslora=use_rslora)
    parameters = trainable_parameters(tuned.model)
    assert len(parameters) == 3 * NUM_ADAPTERS
    allocator = train_steps(tuned, config, steps=steps)
    write_adapter(
        tmp_path,
        model=tuned.model,
        base=config.model,
        tokenizer=load_tokenizer(folder),
        stop_ids=[3],
    )
    want, plain = logits(tuned.model), logits(base_of(folder, method))
    got = logits(PeftModel.from_pretrained(base_of(folder, method), tmp_path))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert (want - plain).abs().max() > 1e-3
    with base_alone(tuned.model):
        assert torch.equal(logits(tuned.model), plain)
    assert ranks_of(tmp_path) == {name: rank for name, rank in allocator.ranks.items() if rank}


def test_a_run_stopped_mid_fall_goes_on_to_the_same_bits_in_4_bits(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path
) -> None:
    """Plain LoRA is killed at every step in test_exact_resume."""
    config = config_of(kit, "qlora", checkpoint={"everySteps": 2})
    options = {"model_dir": folder, "rows": rows}
    whole = kit.run(tmp_path / "whole", config, **options)
    stopping = kit.RecordingObserver(stop_at=3)
    assert kit.run(tmp_path / "cut", config, observer=stopping, **options).interrupted
    resumed = kit.run(tmp_path / "cut", config, attempt=2, **options)
    want, got = load_file(whole.adapter_dir / WEIGHTS), load_file(resumed.adapter_dir / WEIGHTS)
    assert {k: v.shape for k, v in want.items()} == {k: v.shape for k, v in got.items()}
    assert [key for key in want if not torch.equal(want[key], got[key])] == []


def test_going_back_takes_the_allocation_back_too(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path
) -> None:
    class Damaging(kit.RecordingObserver):  # type: ignore[name-defined,misc]
        """Puts NaN into the weights after the fifth step, once."""

        def on_step(self, report: Any) -> None:
            super().on_step(report)
            if [step.step for step in self.steps] == [1, 2, 3, 4, 5]:
                scale_adapters(float("nan"))

    observer = Damaging()
    config = config_of(kit, checkpoint={"everySteps": 4, "keep": 5}, export={"verify": False})
    done = kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    assert [report.step for report in observer.steps] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    means = [report.mean_rank for report in observer.steps]
    assert means[3] > means[4] == means[5] == RANK
    files = sorted((tmp_path / "checkpoints").glob("step-000004-*/allocation.safetensors"))
    before, after = (load_file(path) for path in files)
    assert any("importance" in key for key in before)
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert sum(ranks_of(done.adapter_dir).values()) == RANK * NUM_ADAPTERS


def test_two_ranks_decide_alike_and_as_one_does(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path
) -> None:
    """Every save fails where a rank holds other adapters, pruned ones included, than the first."""
    config = config_of(kit, tuning={"lora": {"dropout": 0.0}}, checkpoint={"everySteps": 1})
    exported = []
    for count in (1, 2):
        root = tmp_path / str(count)
        root.mkdir()
        arguments = (root, config, folder, rows, 1, None)
        meeting = tmp_path / f"meeting-{count}"
        first, *others = values_of(run_ranks(train, *arguments, meeting=meeting, count=count))
        assert first.step == STEPS
        assert [other.tuned for other in others] == [first.tuned] * (count - 1)
        exported.append(ranks_of(root / "out" / "artifacts" / "adapter"))
    assert exported[0] == exported[1]


def test_evaluations_before_the_ranks_are_settled_do_not_count(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path
) -> None:
    """A model of more ranks than the budget is no result, however good it is."""
    config = config_of(
        kit,
        dataset={"split": {"train": 0.8, "validation": 0.2}},
        training={"maxSteps": 16, "earlyStopping": {"patience": 2, "minDelta": 1e9}},
        evaluation={"everySteps": 1},
        export={"verify": False},
    )
    settled = 12
    done = kit.run(tmp_path, config, model_dir=folder, rows=rows)
    assert done.step == settled + 2, "the first one that counts, and two without a gain"
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best["step"] >= settled
    assert sum(ranks_of(done.adapter_dir).values()) == RANK * NUM_ADAPTERS


@pytest.fixture
def empty_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets steps, counted from 1, have nothing to train."""
    of_step = StepSequences.of_step

    def leave_out(*steps: int) -> None:
        def emptied(self: StepSequences, step: int, **options: Any) -> Any:
            return [] if step + 1 in steps else of_step(self, step, **options)

        monkeypatch.setattr(StepSequences, "of_step", emptied)

    return leave_out


def test_ranks_fall_to_the_budget_also_where_the_last_step_trains_nothing(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path, empty_steps: Callable[..., None]
) -> None:
    empty_steps(STEPS)
    observer = kit.RecordingObserver()
    allocation = {"startShare": 0.2, "endShare": 1.0, "everySteps": 5}
    config = config_of(kit, tuning={"lora": {"rankAllocation": allocation}})
    done = kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    assert done.step == STEPS
    assert observer.steps[-1].step == STEPS - 1
    assert observer.steps[-1].mean_rank > RANK
    [settled] = told(observer, "ranks-settled")
    assert settled.startswith(f"Ranks are settled at step {STEPS}: 4.0 on average")
    assert sum(ranks_of(done.adapter_dir).values()) == RANK * NUM_ADAPTERS


def test_what_has_more_ranks_than_the_budget_is_not_the_best_where_they_fall_late(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path, empty_steps: Callable[..., None]
) -> None:
    """Without a single step that was trained nothing is known to decide by."""
    empty_steps(*range(1, END + 1))
    observer = kit.RecordingObserver()
    config = config_of(
        kit,
        dataset={"split": {"train": 0.8, "validation": 0.2}},
        evaluation={"everySteps": 1},
        export={"verify": False},
    )
    kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    assert [report.mean_rank for report in observer.steps] == [RANK, RANK]
    best = [report.step for report in observer.checkpoints if report.cause == "best"]
    assert best
    assert min(best) == END + 1


@pytest.mark.parametrize(("end_share", "is_warned"), [(1.0, True), (0.9, True), (0.75, False)])
def test_early_stopping_that_no_evaluation_can_set_off_is_told(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path, end_share: float, is_warned: bool
) -> None:
    """0.9 of so few steps is the last one too."""
    observer = kit.RecordingObserver()
    config = config_of(
        kit,
        dataset={"split": {"train": 0.8, "validation": 0.2}},
        tuning={"lora": {"rankAllocation": {"endShare": end_share}}},
        training={"maxSteps": 4, "earlyStopping": {}},
        evaluation={"baseline": False},
        export={"verify": False},
    )
    kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    warned = [text for text in told(observer, "warning") if "earlyStopping" in text]
    assert len(warned) == is_warned
    if is_warned:
        assert "ranks fall until step 4 of 4" in warned[0]


@pytest.mark.parametrize(
    "tuning",
    [
        pytest.param({"quantization": {"computeDtype": "bfloat16"}}, id="16 bits round otherwise"),
        pytest.param({"newTokens": ["<tool>"]}, id="new tokens"),
        pytest.param({"lora": {"alphaPattern": {"q_proj": 30.0}}}, id="an alpha by module"),
        pytest.param({"lora": {"modulesToSave": ["embed_tokens"]}}, id="tied embeddings in full"),
    ],
)
def test_the_export_is_verified_beside_other_settings(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path, tuning: dict[str, Any]
) -> None:
    config = config_of(kit, tuning=tuning, evaluation={"baseline": False})
    done = kit.run(tmp_path, config, model_dir=folder, rows=rows)
    assert config.export.verify
    assert sum(ranks_of(done.adapter_dir).values()) == RANK * NUM_ADAPTERS


def test_it_learns_as_much_as_lora_of_the_same_rank(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path
) -> None:
    losses = {}
    for name, lora in (("lora", {"rankAllocation": None}), ("allocated", {})):
        observer = kit.RecordingObserver()
        data = config_of(
            kit,
            tuning={"lora": lora},
            training={"maxSteps": 60, "batchSize": 8},
            evaluation={"baseline": False},
            export={"verify": False},
        )
        kit.run(tmp_path / name, data, model_dir=folder, rows=rows, observer=observer)
        losses[name] = sum(report.loss for report in observer.steps[-10:]) / 10
    assert losses["lora"] < 2.2
    assert losses["allocated"] == pytest.approx(losses["lora"], rel=0.1)
