"""Chunked loss in every family: the model's own numbers, and never more logits than a piece."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.unit.pipeline.adapted import adapted
from tests.unit.pipeline.families import COMMON, FAMILIES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, BertConfig, Llama4TextConfig, LlamaConfig

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.memory.room import Room
from anneal_pipeline.memory.trace import Place, make_planner
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.observer import EVENT_MEMORY_PLANNED, EVENT_WARNING
from anneal_pipeline.training import loss as loss_module
from anneal_pipeline.training.batches import IGNORED, Batch
from anneal_pipeline.training.loss import LogitsPath

PIECE = 8
VOCABULARY = 67
"""As wide as nothing else in any of the models."""


class WidestLogits(TorchDispatchMode):
    """The most rows as wide as the vocabulary that any operator makes, backward passes included."""

    def __init__(self, head: torch.Tensor) -> None:
        super().__init__()
        self._head = head.untyped_storage().data_ptr()
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[-1] == VOCABULARY:
                is_head = leaf.untyped_storage().data_ptr() == self._head
                self.rows = max(self.rows, 0 if is_head else leaf.numel() // VOCABULARY)
        return out


def unequal_batch() -> Batch:
    """Three rows with 11, 17 and 22 trained tokens: pieces end within rows."""
    ids = torch.randint(3, VOCABULARY, (3, 23), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :12] = labels[1, 18:] = IGNORED
    return Batch(ids=ids, attention_mask=torch.ones_like(ids), labels=labels)


def gradients_of(model: PeftModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in trainable_parameters(model).items()}
    model.zero_grad()
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def llama4() -> PeftModel:
    """A family whose class names no part of its own as its base."""
    sizes = {
        **COMMON,
        "intermediate_size_mlp": 48,
        "head_dim": 8,
        "num_local_experts": 2,
        "vocab_size": VOCABULARY,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Llama4TextConfig(**sizes))
    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "o_proj"]))


@pytest.mark.parametrize("family", [*FAMILIES, "llama4"])
def test_a_step_has_the_models_own_gradients_and_logits_of_one_piece_at_once(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "PIECE_TOKENS", PIECE)
    model = llama4() if family == "llama4" else adapted(family, vocabulary=VOCABULARY)
    path, batch = LogitsPath(model), unequal_batch()
    assert path.selects
    model.eval()  # no dropout of the base
    whole = model(input_ids=batch.ids, attention_mask=batch.attention_mask, labels=batch.labels)
    whole.loss.backward()
    want = gradients_of(model)

    asked: list[int] = []
    saved: list[int] = []
    head = model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda _, inputs, out: asked.append(out.numel() // VOCABULARY))

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-1:] == (VOCABULARY,) and tensor.data_ptr() != head.weight.data_ptr():
            saved.append(tensor.numel() // VOCABULARY)
        return tensor

    widest, count = WidestLogits(head.weight), batch.num_trained_tokens
    with widest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = path.backward(batch, weigh=lambda losses: losses / count)

    assert loss / count == pytest.approx(float(whole.loss.detach()), rel=1e-5)
    got = gradients_of(model)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-6)
    assert (sum(asked), max(asked)) == (count, PIECE)
    assert saved, "what the backward pass of the loss needs was not seen"
    assert max(saved) == PIECE
    assert widest.rows == PIECE


BERT = BertConfig(
    vocab_size=340,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    max_position_embeddings=128,
    is_decoder=True,
    bos_token_id=1,
    eos_token_id=3,
    pad_token_id=0,
)
"""Its head has a layer of its own before the words."""


def test_whole_logits_are_told_once_with_their_size_and_measured(
    kit: ModuleType, tmp_path: Path, rows: Path
) -> None:
    events: list[tuple[str, str, dict[str, Any]]] = []

    class Listener(kit.RecordingObserver):  # type: ignore[name-defined,misc]
        def on_event(self, name: str, message: str, fields: Any) -> None:
            events.append((name, message, dict(fields)))

    folder = kit.save_model(tmp_path / "bert", BERT)
    config = kit.make_config(
        training={"maxSteps": 1, "microBatchSize": 2},
        evaluation={"numGenerations": 0, "baseline": False},
        export={"verify": False},
    )
    plenty = Room(limit=1 << 40, libraries=0)
    options = {"observer": Listener(), "room_of": lambda ranks: plenty}
    kit.run(tmp_path, config, model_dir=folder, rows=rows, **options)
    [(message, fields)] = [
        (message, fields)
        for name, message, fields in events
        if name == EVENT_WARNING and fields.get("kind") == "logits"
    ]
    length = fields["tokens"]
    assert fields["logitsBytes"] == 4 * 2 * length * 340
    assert f"2 x {length} tokens x 340 words take 0 MiB in fp32" in message
    kinds = [fields["kind"] for name, _, fields in events if name == EVENT_MEMORY_PLANNED]
    assert kinds == ["planned", "measured"]


def test_a_plan_counts_whole_logits_where_the_model_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"model": {"uri": "m"}, "dataset": {"uri": "d"}, "tuning": {"method": "lora"}}
    place = Place(compute=torch.float32, in_4_bit=False, on_gpu=False)
    rows, length, vocabulary = 64, 65, 8192
    LlamaConfig(**{**COMMON, "vocab_size": vocabulary}).save_pretrained(tmp_path)

    def logits() -> int:
        planner = make_planner(PipelineConfig.parse(config), folder=tmp_path, place=place)
        return planner.plan(rows=rows, length=length).logits

    pieces = logits()
    monkeypatch.setattr(LogitsPath, "_probe", lambda self: False)
    whole = 4 * rows * (length - 1) * vocabulary
    assert logits() >= 2 * whole > 2 * pieces > 0
