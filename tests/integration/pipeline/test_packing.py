"""Packed rows are trained as if each were alone: in every family, at every kill, when things fail.

Pitfalls: packing leaks across documents; packing cuts the step count, so that schedule and warm-up
change.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from tests.integration.pipeline.mishaps import adapter, poisoned_model, told
from tests.integration.pipeline.test_exact_resume import METHODS, final_state, run_killed_at
from tests.unit.pipeline.families import FAMILIES, VOCABULARY
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaModel

from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.config.tuning import LoraConfig
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.errors import UserError
from anneal_pipeline.model.adapters import add_adapters, trainable_parameters
from anneal_pipeline.model.packable import require_packable
from anneal_pipeline.model.targets import choose_targets
from anneal_pipeline.training.batches import Batch, collate, collate_packed, micro_batches
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.sequences import StepSequences

WINDOW = {"sliding_window": 4}
PACKABLE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": WINDOW,
    "mixtral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": WINDOW,
    "gemma3": WINDOW,
    "phi": {},
    "phi3": {},
    "gpt2": {},
    "gpt-neox": {},
}
"""Families that keep rows apart, with a window shorter than the rows where they have one."""
ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
LENGTHS = (9, 3, 1, 7, 12, 5, 8, 2)
LIMIT = 20


def tuned(name: str, **options: Any) -> PeftModel:
    """The family with adapters that do something."""
    torch.manual_seed(0)
    kind, arguments, _, _ = FAMILIES[name]
    config = getattr(transformers, kind)(**arguments, **options)
    # Wide weights: attention that leaks shows in the logits.
    config.initializer_range = 0.2
    base = AutoModelForCausalLM.from_config(config)
    lora = LoraConfig(rank=2, dropout=0.0)
    model = add_adapters(base, lora, targets=choose_targets(base, lora), seed=1)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.normal_(std=0.05)
    return model


def split_of(seed: int = 3) -> PreparedSplit:
    generator = torch.Generator().manual_seed(seed)
    total = sum(LENGTHS)
    return PreparedSplit(
        ids=torch.randint(3, VOCABULARY, (total,), generator=generator, dtype=torch.int32),
        is_response=torch.randint(0, 2, (total,), generator=generator, dtype=torch.uint8),
        offsets=torch.tensor([0, *LENGTHS]).cumsum(0),
    )


def packed_batch(split: PreparedSplit, sequences: list[tuple[int, ...]]) -> Batch:
    return collate_packed(split, sequences, pad_id=0, train_all=True)


@pytest.mark.parametrize("name", PACKABLE)
def test_packed_logits_are_those_of_each_row_alone(name: str) -> None:
    """Pitfall: packing leaks across documents.

    Two sequences of unequal length, so that there is padding as well.
    """
    model, split, rows = tuned(name, **PACKABLE[name]).eval(), split_of(), (0, 1, 2, 3)
    path = LogitsPath(model)
    require_packable(model, uri="models/tiny")
    with torch.no_grad():
        got = path(packed_batch(split, [rows, (4, 5)]))
        alone = [
            path(collate(split, [row], pad_id=0, train_all=True))
            for row in (*rows, 4, 5)
            if LENGTHS[row] > 1  # a row of one token has nothing to foretell
        ]
    assert torch.equal(got.targets, torch.cat([one.targets for one in alone]))
    torch.testing.assert_close(
        got.logits, torch.cat([one.logits for one in alone]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", PACKABLE)
def test_another_first_row_leaves_the_logits_of_the_second_as_they_are(name: str) -> None:
    """Pitfall: packing leaks across documents."""
    model = tuned(name, **PACKABLE[name]).eval()
    batch = packed_batch(split_of(), [(0, 4)])
    other = packed_batch(split_of(seed=4), [(0, 4)])
    other.ids[:, LENGTHS[0] :] = batch.ids[:, LENGTHS[0] :]
    with torch.no_grad():
        one, two = (model(**b.inputs(), use_cache=False).logits for b in (batch, other))
    assert not torch.allclose(one[:, : LENGTHS[0]], two[:, : LENGTHS[0]], atol=1e-3)
    torch.testing.assert_close(one[:, LENGTHS[0] :], two[:, LENGTHS[0] :], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["falcon", "opt", "bloom", "mpt"])
def test_a_family_that_would_let_rows_see_each_other_is_refused(
    name: str, kind: torch.dtype
) -> None:
    model = tuned(name)
    with pytest.raises(UserError, match=r"models/tiny .* set training.packing to false") as caught:
        require_packable(model.to(kind), uri="models/tiny")
    assert caught.value.reason == "ModelUnsupported"


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma2", "gpt2"])
def test_rounding_to_16_bits_is_no_reason_to_refuse(name: str) -> None:
    model = tuned(name, **PACKABLE[name]).to(torch.bfloat16)
    require_packable(model, uri="models/tiny")
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_packed_window_has_the_gradients_of_the_unpacked_one(name: str) -> None:
    model, split = tuned(name, **PACKABLE[name]).eval(), split_of()
    path = LogitsPath(model)
    data = {"maxGradNorm": 1e6, "batchSize": 8, "sequenceLength": LIMIT, "packing": True}
    config = TrainingConfig.parse(data)
    optimizer = AdapterOptimizer(config, model=model, compute=torch.float32, ranks=ALONE)

    def gradients(batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
        outcome = optimizer.gather(path, batches)
        parameters = trainable_parameters(model).items()
        found = {name: p.grad.clone() for name, p in parameters if p.grad is not None}
        optimizer.drop()
        return outcome.loss, found

    rows = micro_batches(range(len(LENGTHS)), 3)
    want = gradients([collate(split, part, pad_id=0, train_all=True) for part in rows])
    sequences = StepSequences.of(config, LENGTHS).of_step(0)
    assert len(sequences) == 3
    for size in (1, 2):
        parts = micro_batches(sequences, size)
        loss, got = gradients([packed_batch(split, list(part)) for part in parts])
        assert loss == pytest.approx(want[0], abs=1e-5)
        assert got.keys() == want[1].keys()
        for key, gradient in got.items():
            torch.testing.assert_close(gradient, want[1][key], rtol=1e-4, atol=1e-5)


def config_of(kit: ModuleType, *, method: str = "fp32 LoRA", **training: Any) -> Any:
    return kit.make_config(
        tuning=METHODS[method],
        training={"maxSteps": 5, "microBatchSize": 2, "packing": True, **training},
        dataset={"split": {"train": 0.9, "validation": 0.1}},
        evaluation={"everySteps": 2, "numGenerations": 0, "baseline": False},
        checkpoint={"everySteps": 3},
        export={"verify": False},
    )


@pytest.fixture(scope="module")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(30))
    return path


def report_of(root: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((root / "out" / "data" / "report.json").read_text())
    return report


@pytest.mark.parametrize("method", METHODS)
def test_a_packed_run_killed_at_several_steps_ends_bit_equal(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, method: str
) -> None:
    config = config_of(kit, method=method)
    options = {"model_dir": model_dir, "rows": rows}
    kit.run(tmp_path / "whole", config, **options)
    report = report_of(tmp_path / "whole")
    steps_per_epoch = -(-report["packing"]["num_sequences"] // 4)
    assert steps_per_epoch < 5, "the run goes on into a second epoch"
    for steps in ([1, 3], [4]):
        root = tmp_path / f"killed-{steps[0]}"
        run_killed_at(kit, root, config, steps=steps, **options)
        assert final_state(root) == final_state(tmp_path / "whole"), steps


def test_steps_milestones_and_warm_up_follow_from_the_packed_length(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    """Pitfall: packing cuts the step count, and with it schedule and warm-up."""
    config = kit.make_config(
        dataset={"split": {"train": 1.0, "validation": 0.0}},
        training={"maxSteps": None, "epochs": 2.0, "packing": True, "warmupRatio": 0.5},
        evaluation={"numGenerations": 0, "baseline": False},
        checkpoint={"milestones": [50]},
        export={"verify": False},
    )
    observer = kit.RecordingObserver()
    result = kit.run(tmp_path, config, model_dir=model_dir, rows=rows, observer=observer)
    report = report_of(tmp_path)
    packing, train = report["packing"], report["splits"]["train"]
    assert packing["num_sequences"] < train["num_rows"] == 30
    want = 2 * -(-packing["num_sequences"] // 4)
    assert (result.step, result.total_steps) == (want, want)
    assert sum(step.num_tokens for step in observer.steps) == 2 * train["num_tokens"]
    rates = [step.learning_rate for step in observer.steps]
    assert rates.index(max(rates)) + 1 == -(-want // 2)
    state = tmp_path / "out" / "milestones" / "checkpoint-50pct" / "training_state.json"
    assert json.loads(state.read_text())["step"] == -(-want // 2)
    line = f"{packing['num_sequences']} sequences of up to 128 tokens, "
    for page in ("report.md", "report.html"):
        assert line in (tmp_path / "out" / "data" / page).read_text()


def test_a_row_that_is_no_number_is_named_and_leaves_its_sequence_alone(
    kit: ModuleType, model_dir: Path, tmp_path: Path
) -> None:
    data = [
        kit.chat("Is ~ a wave?", "It is.") if n == 5 else row for n, row in enumerate(kit.sums(20))
    ]
    path = kit.write_rows(tmp_path / "rows.jsonl", data)
    folder = poisoned_model(kit, model_dir, tmp_path / "model", text="~")
    observer = kit.RecordingObserver()
    config = kit.make_config(
        dataset={"split": {"train": 1.0, "validation": 0.0}},
        training={"packing": True, "maxSteps": 4, "batchSize": 8},
        evaluation={"numGenerations": 0, "baseline": False},
        export={"verify": False},
    )
    kit.run(tmp_path, config, model_dir=folder, rows=path, observer=observer)
    [message] = told(observer)
    assert "left out from now on: rows.jsonl:6 (" in message
    tokens = report_of(tmp_path)["splits"]["train"]["num_tokens"]
    assert len({step.num_tokens for step in observer.steps}) == 1
    assert tokens - 60 < observer.steps[0].num_tokens < tokens, "only the one row is gone"


def test_out_of_memory_halves_the_sequences_that_go_at_once(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"model_dir": model_dir, "rows": rows}
    want, got = kit.RecordingObserver(), kit.RecordingObserver()
    kit.run(tmp_path / "small", config_of(kit, microBatchSize=1), observer=want, **options)
    forward = LlamaModel.forward

    @functools.wraps(forward)
    def hungry(self: Any, input_ids: torch.Tensor, **inputs: Any) -> Any:
        if self.training and len(input_ids) > 1:
            torch.empty(1 << 50)
        return forward(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(LlamaModel, "forward", hungry)
    kit.run(tmp_path / "big", config_of(kit, microBatchSize=4), observer=got, **options)
    assert [text.split("; ")[1][:19] for text in told(got)] == [
        "going on with 2 row", "going on with 1 row"
    ]  # fmt: skip
    assert [step.loss for step in got.steps] == [step.loss for step in want.steps]
    assert adapter(tmp_path / "big") == adapter(tmp_path / "small")


def test_a_model_that_cannot_be_packed_is_refused_before_training(
    kit: ModuleType, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bloom"
    config = transformers.BloomConfig(
        vocab_size=kit.VOCABULARY, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    kit.make_tokenizer().save_pretrained(folder)
    observer = kit.RecordingObserver()
    with pytest.raises(UserError, match=r"\(a bloom\) cannot be trained with training.packing"):
        kit.run(tmp_path, config_of(kit), model_dir=folder, rows=rows, observer=observer)
    assert observer.steps == []
