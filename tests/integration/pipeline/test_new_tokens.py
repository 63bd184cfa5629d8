"""New tokens: their rows alone are trained, tied weights stay one, and the export holds them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from anneal_pipeline.errors import UserError
from anneal_pipeline.export.adapter import write_adapter
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.beginning import base_alone
from anneal_pipeline.model.loading import TunedModel, load_tokenizer, load_tuned_model
from anneal_pipeline.model.trained_rows import TrainedRows
from anneal_pipeline.training.batches import Batch
from anneal_pipeline.training.loss import PIECE_TOKENS, LogitsPath, sum_of_losses

CPU = torch.device("cpu")
TOKENS = ["<tool>", "quux"]
TEXT = "What is <tool> the quux <tool>?"


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(
    request: pytest.FixtureRequest, kit: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One whose single table has to grow, and one of two tables with rows to spare."""
    made: Path = kit.write_model(tmp_path_factory.mktemp("wide"), hidden=64, spread=0.1)
    changes: dict[str, Any] = {"tie_word_embeddings": False}
    if request.param == "tied":
        changes = {"vocab_size": len(AutoTokenizer.from_pretrained(made))}
    config = LlamaConfig.from_pretrained(made, **changes)
    LlamaForCausalLM(config).save_pretrained(made)
    return made


def config_of(kit: ModuleType, *, method: str = "lora", **tuning: Any) -> Any:
    return kit.make_config(
        tuning={
            "method": method,
            "newTokens": TOKENS,
            "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1},
            **tuning,
        },
        training={"maxSteps": 4},
        checkpoint={"everySteps": 2},
        evaluation={"numGenerations": 1},
    )


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    model.train()
    return found


def train_a_little(tuned: TunedModel, ids: torch.Tensor) -> None:
    sgd = torch.optim.SGD(trainable_parameters(tuned.model).values(), lr=0.1)
    path = LogitsPath(tuned.model)
    for _ in range(3):
        sgd.zero_grad()
        batch = Batch(ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
        sum_of_losses(path(batch)).backward()
        sgd.step()


def is_tied(model: Any) -> bool:
    places = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = [getattr(getattr(m, "token_adapter", m), "base_layer", m).weight for m in places]
    trained = [
        m.token_adapter.trainable_tokens_delta for m in places if hasattr(m, "token_adapter")
    ]
    pointers = {table.data_ptr() for table in tables}
    rows = {part["default"].data_ptr() for part in trained}
    assert not rows or len(rows) == len(pointers)
    return len(pointers) == 1


class BesidesTable(TorchDispatchMode):
    """Watches for tensors that are as large as a table and are not one."""

    def __init__(self, tables: list[torch.Tensor]) -> None:
        super().__init__()
        self.size = tables[0].numel()
        self.places = {table.untyped_storage().data_ptr() for table in tables}
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        results = made if isinstance(made, tuple) else (made,)
        large = [t for t in results if isinstance(t, torch.Tensor) and t.numel() == self.size]
        if any(tensor.untyped_storage().data_ptr() not in self.places for tensor in large):
            self.found.append(str(func))
        return made


def test_the_gradient_is_that_of_the_whole_table_without_its_work(
    kit: ModuleType, folder: Path
) -> None:
    config = config_of(kit, lora={"rank": 4, "dropout": 0.0})
    tuned = load_tuned_model(config, folder=folder, device=CPU)
    first = len(load_tokenizer(folder))
    ids = torch.randint(first, (4, 200), generator=torch.Generator().manual_seed(1))
    ids[:, ::7] = first
    ids[:, 3::11] = first + 1
    batch = Batch(ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    assert batch.num_trained_tokens > 2 * PIECE_TOKENS
    path = LogitsPath(tuned.model)
    assert path.selects
    layers = [m for m in tuned.model.modules() if isinstance(m, TrainedRows)]
    found = []
    for kind in (TrainedRows, TrainableTokensLayer):
        for layer in layers:
            layer.__class__ = kind
        tuned.model.zero_grad()
        with BesidesTable([layer.get_base_layer().weight for layer in layers]) as besides:
            loss = path.backward(batch, weigh=lambda losses: losses / batch.num_trained_tokens)
        grads = {n: p.grad.clone() for n, p in trainable_parameters(tuned.model).items()}
        found.append((loss, grads, bool(besides.found)))
    (loss, got, did_more), (want_loss, want, peft_did_more) = found
    assert (did_more, peft_did_more) == (False, True)
    assert loss == pytest.approx(want_loss, rel=1e-6)
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-4, atol=1e-6)
    assert all(grad.any() for name, grad in got.items() if "lora_" not in name)


def test_a_mark_is_found_anywhere_and_a_word_only_whole_also_after_a_reload(
    kit: ModuleType, folder: Path, tmp_path: Path
) -> None:
    tokens = ["<tool>", "cat", "R2", "\u6771\u4eac"]
    text = "a<tool>b: concatenate cat, R2D2 category CAT cat. (R2) \u6771\u4eac\u90fd"
    config = config_of(kit, newTokens=tokens)
    tuned = load_tuned_model(config, folder=folder, device=CPU)
    tokenizer = load_tokenizer(folder, new_tokens=tokens)
    export = {"base": config.model, "tokenizer": tokenizer, "stop_ids": [3]}
    write_adapter(tmp_path, model=tuned.model, **export)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = each(text, add_special_tokens=False)["input_ids"]
        assert [ids.count(n) for n in each.convert_tokens_to_ids(tokens)] == [1, 2, 1, 1]
        assert each.decode(ids) == text, "the blanks around a token stay"


def loaded_as_the_guide_says(folder: Path, adapter: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    base = AutoModelForCausalLM.from_pretrained(folder)
    if len(tokenizer) > base.get_input_embeddings().num_embeddings:
        base.resize_token_embeddings(len(tokenizer))
    return PeftModel.from_pretrained(base, adapter)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_only_their_rows_are_trained_and_the_base_is_the_base_with_the_same_tokenizer(
    kit: ModuleType, folder: Path, method: str
) -> None:
    tuned = load_tuned_model(config_of(kit, method=method), folder=folder, device=CPU)
    plain, tokenizer = load_tokenizer(folder), load_tokenizer(folder, new_tokens=TOKENS)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    assert ids.max() == len(plain) + 1
    rows = {n: p for n, p in trainable_parameters(tuned.model).items() if "lora_" not in n}
    before = {name: row.detach().clone() for name, row in rows.items()}
    tied = is_tied(AutoModelForCausalLM.from_pretrained(folder))
    assert [tuple(p.shape) for p in rows.values()] == [(2, 64)] * (1 if tied else 2)
    with base_alone(tuned.model):
        base = logits(tuned.model, ids)
    assert torch.equal(logits(tuned.model, ids), base)
    table = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    pieces = plain("quux", add_special_tokens=False)["input_ids"]
    assert torch.equal(next(iter(rows.values()))[1], table[pieces].mean(0))
    train_a_little(tuned, ids)
    assert not any((rows[name] == before[name]).all(1).any() for name in rows)
    with base_alone(tuned.model):
        assert torch.equal(logits(tuned.model, ids), base)
    assert not torch.equal(logits(tuned.model, ids), base)


def test_after_a_reload_tied_weights_are_one_and_the_logits_of_new_tokens_are_equal(
    kit: ModuleType, folder: Path, tmp_path: Path
) -> None:
    """Pitfall: tied embeddings cloned or lost; new tokens dropped."""
    tuned = load_tuned_model(config_of(kit), folder=folder, device=CPU)
    tokenizer = load_tokenizer(folder, new_tokens=TOKENS)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    train_a_little(tuned, ids)
    write_adapter(
        tmp_path,
        model=tuned.model,
        base=config_of(kit).model,
        tokenizer=tokenizer,
        stop_ids=[3],
    )
    again = loaded_as_the_guide_says(folder, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"] == ids[0].tolist()
    assert is_tied(again.get_base_model()) == is_tied(AutoModelForCausalLM.from_pretrained(folder))
    want, got = logits(tuned.model, ids), logits(again, ids)
    assert want.shape[-1] == max(len(tokenizer), again.config.vocab_size)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    kit: ModuleType, tmp_path: Path, folder: Path, method: str
) -> None:
    rows = [kit.chat(f"What is <tool> {n}?", f"It is quuux {n * n}.") for n in range(16)]
    file = kit.write_rows(tmp_path / "rows.jsonl", rows)
    config = config_of(kit, method=method)
    whole = kit.run(tmp_path / "whole", config, model_dir=folder, rows=file)
    observer = kit.RecordingObserver(stop_at=3)
    kit.run(tmp_path / "cut", config, model_dir=folder, rows=file, observer=observer)
    assert any("names quux, which no training row has" in said for _, said in observer.events)
    resumed = kit.run(tmp_path / "cut", config, model_dir=folder, rows=file, attempt=2)
    name = "adapter_model.safetensors"
    want, got = load_file(whole.adapter_dir / name), load_file(resumed.adapter_dir / name)
    assert want.keys() == got.keys()
    assert any("trainable_tokens_delta" in key for key in want)
    assert [key for key in want if not torch.equal(want[key], got[key])] == []


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ({"newTokens": ["<tool>", "<bos>"]}, "names <bos>, which the tokenizer of the model has"),
        (
            {"lora": {"rank": 4, "modulesToSave": ["embed_tokens"]}},
            "trains rows of model.embed_tokens, which tuning.lora.modulesToSave trains in full",
        ),
    ],
)
def test_tokens_that_cannot_be_had_are_refused(
    kit: ModuleType, folder: Path, tuning: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load_tuned_model(config_of(kit, **tuning), folder=folder, device=CPU)
