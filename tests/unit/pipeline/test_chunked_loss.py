"""The loss in pieces of the labelled tokens has the gradients of the loss over whole logits."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.unit.pipeline.families import VOCABULARY, make_family

from anneal_pipeline.training import loss
from anneal_pipeline.training.batches import IGNORED, Batch
from anneal_pipeline.training.loss import LogitsPath


def some_rows() -> Batch:
    """Two rows of 12 tokens, 8 of them labelled in each."""
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :4] = IGNORED
    return Batch(ids=ids, attention_mask=torch.ones_like(ids), labels=labels)


@pytest.mark.parametrize(
    "of_the_head",
    [
        pytest.param({"target_modules": ["q_proj", "lm_head"]}, id="LoRA on it"),
        pytest.param(
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, id="trained whole"
        ),
    ],
)
def test_chunked_loss_ignores_no_adapter_of_an_untied_head(
    of_the_head: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall: chunked cross entropy ignores LoRA on lm_head."""
    monkeypatch.setattr(loss, "PIECE_TOKENS", 5)
    base = make_family("llama").float()
    assert base.lm_head.weight is not base.get_input_embeddings().weight
    model = get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM", **of_the_head))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for index, parameter in enumerate(trained.values()):
            torch.manual_seed(index)
            parameter.normal_(std=0.05)
    path, batch = LogitsPath(model), some_rows()
    assert path.selects
    assert batch.num_trained_tokens > 2 * loss.PIECE_TOKENS
    seen = []
    for selects in (False, True):
        path.selects = selects
        model.zero_grad()
        total = path.backward(batch, weigh=lambda losses: losses)
        seen.append((total, {name: p.grad.clone() for name, p in trained.items()}))
    (want_total, want), (total, got) = seen
    assert total == pytest.approx(want_total, rel=1e-5)
    assert any("lm_head" in name for name in want)
    for name in want:
        scale = float(want[name].abs().max())
        assert scale > 0, name
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5 * scale)
