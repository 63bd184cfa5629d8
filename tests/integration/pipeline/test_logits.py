"""Logits of labelled tokens alone, in pieces: those of the model itself."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.integration.pipeline.unequal_rows import CPU, NUM_ROWS
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
)

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.loading import TunedModel, load_tuned_model
from anneal_pipeline.training import loss as loss_module
from anneal_pipeline.training.batches import Batch, collate
from anneal_pipeline.training.loss import LogitsPath, sum_of_losses


def test_pieces_give_the_gradients_and_metrics_of_the_whole(
    tuned: TunedModel, split: PreparedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = trainable_parameters(tuned.model)
    with torch.no_grad():
        for index, parameter in enumerate(parameters.values()):
            torch.manual_seed(index)
            parameter.normal_(std=0.05)
    path = LogitsPath(tuned.model)
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    sizes: list[int] = []

    def trained() -> tuple[float, dict[str, torch.Tensor]]:
        tuned.model.zero_grad()
        loss = path.backward(batch, weigh=lambda losses: losses / 7)
        return loss, {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}

    want_loss, want = trained()
    monkeypatch.setattr(loss_module, "PIECE_TOKENS", 16)
    got_loss, got = trained()
    assert got_loss == pytest.approx(want_loss, rel=1e-5)
    assert got.keys() == want.keys() == parameters.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        for tokens in path.pieces(batch):
            sizes.append(len(tokens.targets))
            assert len(tokens.logits) == sizes[-1]
    assert sum(sizes) == batch.num_trained_tokens
    assert max(sizes) == 16
    tuned.model.zero_grad()


def test_selected_logits_give_the_loss_of_the_model_itself(
    tuned: TunedModel, split: PreparedSplit
) -> None:
    path = LogitsPath(tuned.model)
    assert path.selects
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    got, want = losses_of_path_and_model(path, tuned, batch=batch)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def losses_of_path_and_model(
    path: LogitsPath, tuned: TunedModel, *, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    tuned.model.eval()
    with torch.no_grad():
        ours = sum_of_losses(path(batch)) / batch.num_trained_tokens
        theirs = tuned.model(
            input_ids=batch.ids, attention_mask=batch.attention_mask, labels=batch.labels
        ).loss
    return ours, theirs


SMALL = {
    "vocab_size": 340,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}

SHAPED = {
    "capped": Gemma2Config(**SMALL, final_logit_softcapping=0.05),
    "divided": GraniteConfig(**SMALL, logits_scaling=8.0),
    "multiplied": CohereConfig(**SMALL, logit_scale=0.25),
}


@pytest.mark.parametrize("kind", SHAPED)
def test_capped_and_scaled_logits_are_those_of_the_model_and_never_whole(
    kit: ModuleType, split: PreparedSplit, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(SHAPED[kind]).save_pretrained(tmp_path)
    kit.make_tokenizer().save_pretrained(tmp_path)
    tuned = load_tuned_model(kit.make_config(), folder=tmp_path, device=CPU)
    path = LogitsPath(tuned.model)
    assert path.selects
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    got, want = losses_of_path_and_model(path, tuned, batch=batch)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_what_is_no_body_of_the_head_is_passed_over(
    tuned: TunedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model with several parts, another one may have been taken for it."""
    other = AutoModel.from_config(LlamaConfig(**{**SMALL, "hidden_size": 16}))
    monkeypatch.setattr(loss_module, "_body_of", lambda causal: other)
    assert not LogitsPath(tuned.model).selects
