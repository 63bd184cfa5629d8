"""Adapters that do not begin as nothing: right at the first step, and right in what is exported."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.integration.pipeline.plain_bases import IDS, base_of, logits

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.errors import StopRequestedError
from anneal_pipeline.export.adapter import write_adapter
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.beginning import base_alone
from anneal_pipeline.model.loading import TunedModel, load_tokenizer, load_tuned_model
from anneal_pipeline.observer import STAGE_MODEL
from anneal_pipeline.training.batches import Batch
from anneal_pipeline.training.loss import LogitsPath, sum_of_losses

CPU = torch.device("cpu")
WEIGHTS = "adapter_model.safetensors"
PLAIN = ("gaussian", "orthogonal", "pissa", "pissa_niter_4")
ALL = [*(("lora", name) for name in PLAIN), ("qlora", "gaussian"), ("qlora", "loftq")]


@pytest.fixture(scope="module")
def folder(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for 4-bit blocks, with weights that are worth decomposing."""
    made: Path = kit.write_model(tmp_path_factory.mktemp("wide"), hidden=64, spread=0.1)
    return made


@pytest.fixture(scope="module")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(16))
    return path


def config_of(kit: ModuleType, method: str, name: str, **lora: Any) -> PipelineConfig:
    chosen = {"rank": 4, "alpha": 12.0, "dropout": 0.1, "initialization": name, **lora}
    config: PipelineConfig = kit.make_config(
        tuning={"method": method, "lora": chosen},
        training={"maxSteps": 4},
        checkpoint={"everySteps": 2},
        evaluation={"numGenerations": 1},
    )
    return config


def load(kit: ModuleType, folder: Path, method: str, name: str, **lora: Any) -> TunedModel:
    return load_tuned_model(config_of(kit, method, name, **lora), folder=folder, device=CPU)


def test_the_size_of_the_base_is_that_without_its_adapters(kit: ModuleType, folder: Path) -> None:
    tuned = load(kit, folder, "lora", "pissa")
    base = base_of(folder, "lora")
    assert tuned.num_base == sum(p.numel() for p in base.parameters())
    assert tuned.base_bytes == sum(p.nbytes for p in base.parameters())
    assert tuned.compression == 0.5, "fp32 over 16 bits"


def train_a_little(tuned: TunedModel) -> None:
    sgd = torch.optim.SGD(trainable_parameters(tuned.model).values(), lr=0.05)
    path = LogitsPath(tuned.model)
    batch = Batch(ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS)
    for _ in range(3):
        sgd.zero_grad()
        sum_of_losses(path(batch)).backward()
        sgd.step()


@pytest.mark.parametrize(("method", "name"), ALL)
def test_before_the_first_step_the_model_is_the_base(
    kit: ModuleType, folder: Path, method: str, name: str
) -> None:
    tuned = load(kit, folder, method, name)
    want = logits(base_of(folder, method))
    got = logits(tuned.model)
    with base_alone(tuned.model):
        assert torch.equal(logits(tuned.model), want)
    if name != "loftq":
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "name"), [("lora", "pissa"), ("qlora", "loftq")])
def test_each_layer_that_is_decomposed_is_told_of_and_a_stop_does_not_wait_for_the_others(
    kit: ModuleType, folder: Path, rows: Path, tmp_path: Path, method: str, name: str
) -> None:
    class Impatient(kit.RecordingObserver):  # type: ignore[name-defined,misc]
        """Is asked to stop while the third layer is decomposed."""

        def on_stage(self, stage: str, *, done: int, total: int, unit: str) -> None:
            if (stage, unit) == (STAGE_MODEL, "layers"):
                told.append((done, total))

        def should_stop(self) -> bool:
            return len(told) == 3

    told: list[tuple[int, int]] = []
    options = {"model_dir": folder, "rows": rows, "observer": Impatient()}
    with pytest.raises(StopRequestedError):
        kit.run(tmp_path, config_of(kit, method, name), **options)
    assert told == [(1, 14), (2, 14), (3, 14)]


@pytest.mark.parametrize(("method", "name"), ALL)
def test_every_trained_matrix_learns_and_the_export_gives_its_logits_on_the_original_base(
    kit: ModuleType, folder: Path, tmp_path: Path, method: str, name: str
) -> None:
    lora = {
        "rankPattern": {"q_proj": 2},
        "alphaPattern": {"q_proj": 3.0, "0.mlp.up_proj": 30.0},
        "useRslora": name == "pissa",
    }
    tuned = load(kit, folder, method, name, **lora)
    with base_alone(tuned.model):
        logits(tuned.model)  # what was frozen has to stay frozen after it
    before = {n: p.detach().clone() for n, p in tuned.model.named_parameters()}
    parameters = trainable_parameters(tuned.model)
    assert len(parameters) == 2 * 14
    train_a_little(tuned)
    moved = {n for n, p in tuned.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(parameters)
    write_adapter(
        tmp_path,
        model=tuned.model,
        base=config_of(kit, method, name).model,
        tokenizer=load_tokenizer(folder),
        stop_ids=[3],
    )
    want = logits(tuned.model)
    got = logits(PeftModel.from_pretrained(base_of(folder, method), tmp_path))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert (want - logits(base_of(folder, method))).abs().max() > 0.01


@pytest.mark.parametrize(("method", "name"), [("lora", "pissa"), ("qlora", "loftq")])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits_and_its_export_is_verified(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path, method: str, name: str
) -> None:
    config = config_of(kit, method, name)
    whole = kit.run(tmp_path / "whole", config, model_dir=folder, rows=rows)
    observer = kit.RecordingObserver(stop_at=3)
    cut = kit.run(tmp_path / "cut", config, model_dir=folder, rows=rows, observer=observer)
    assert cut.interrupted
    resumed = kit.run(tmp_path / "cut", config, model_dir=folder, rows=rows, attempt=2)
    want, got = load_file(whole.adapter_dir / WEIGHTS), load_file(resumed.adapter_dir / WEIGHTS)
    assert want.keys() == got.keys()
    assert [key for key in want if not torch.equal(want[key], got[key])] == []
    assert resumed.base_metrics == whole.base_metrics


@pytest.mark.parametrize(
    "tuning",
    [
        pytest.param({"quantization": {"computeDtype": "bfloat16"}}, id="16 bits round otherwise"),
        pytest.param({"newTokens": ["<tool>"]}, id="new tokens"),
        pytest.param({"lora": {"modulesToSave": ["embed_tokens"]}}, id="tied embeddings in full"),
    ],
)
def test_pissas_export_is_verified_beside_other_settings(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path, tuning: dict[str, Any]
) -> None:
    lora = {"rank": 4, "alpha": 12.0, "initialization": "pissa", **tuning.get("lora", {})}
    config = kit.make_config(
        tuning={**tuning, "method": "lora", "lora": lora},
        training={"maxSteps": 4, "learningRate": 1e-2},
        evaluation={"numGenerations": 1},
    )
    done = kit.run(tmp_path, config, model_dir=folder, rows=rows)
    assert config.export.verify
    rank = {v.shape[0] for k, v in load_file(done.adapter_dir / WEIGHTS).items() if "lora_A" in k}
    assert rank == {8}


def test_what_pissa_began_at_is_taken_from_the_checkpoint_not_found_anew(
    kit: ModuleType, tmp_path: Path, folder: Path, rows: Path
) -> None:
    """Another processor may find other signs and orders of the same directions."""
    config = config_of(kit, "lora", "pissa")
    observer = kit.RecordingObserver(stop_at=2)
    kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    [saved] = [p for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("step-000002")]
    held = load_file(saved / "adapter.safetensors")
    assert sum(".beginning." in key for key in held) == 2 * 14
    moments = load_file(saved / "optimizer.safetensors")
    assert not any(".beginning." in key for key in moments)


@pytest.mark.parametrize("alpha", [4.0, 12.0])
def test_loftq_begins_closer_to_the_unquantised_model_than_plain_nf4(
    kit: ModuleType, folder: Path, alpha: float
) -> None:
    """Pitfall: PEFT's own takes no notice of alpha / rank, and then begins further away."""
    whole = base_of(folder, "lora")
    tuned = load(kit, folder, "qlora", "loftq", rank=16, alpha=alpha)
    begun, plain = layers_of(tuned)["q_proj"], layers_of(load(kit, folder, "qlora", "default"))
    weight = whole.model.layers[0].self_attn.q_proj.weight
    identity = torch.eye(64)
    begun.eval()
    with torch.no_grad():
        distance = torch.linalg.norm(begun(identity).T - weight)
        plain_distance = torch.linalg.norm(plain["q_proj"].eval()(identity).T - weight)
    assert distance < 0.8 * plain_distance
    want = logits(whole)
    error = (logits(tuned.model) - want).norm()
    with base_alone(tuned.model):
        assert error < 0.9 * (logits(tuned.model) - want).norm()


def layers_of(tuned: TunedModel) -> dict[str, Any]:
    layers = tuned.model.get_base_model().model.layers
    return dict(layers[0].self_attn.named_children())
