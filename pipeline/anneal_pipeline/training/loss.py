"""Sums of token losses, with logits computed for the trained positions only.

The output head of a small model is a third of its work and its logits the largest tensor of all;
most positions are prompt or padding and need none. The others are taken in pieces, so that long
rows and large vocabularies do not decide how much memory a step needs. Scaled and capped logits are
made from the config; models whose head is anything else than a product with the last hidden state
are found out by a probe and take the whole-logits path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel

from anneal_pipeline.memory.plan import size_text
from anneal_pipeline.training.batches import IGNORED, Batch
from anneal_pipeline.training.memory import is_out_of_memory

_PROBE_TOLERANCE = 1e-2
"""Relative; generous for 16-bit kernels that round another way, far below any scaling."""


PIECE_TOKENS = 256
"""Logits of so many tokens exist at once: 50 MB in fp32 with a vocabulary of 49,152; products of
more rows are no faster."""


@dataclass(frozen=True, kw_only=True)
class TokenLogits:
    """Logits for the labelled tokens of a batch, in row order."""

    logits: torch.Tensor
    """(labelled tokens, vocabulary)"""
    targets: torch.Tensor


class LogitsPath:
    """How a model's logits for labelled tokens are had; chosen once per model."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._causal = model.get_base_model()
        self._body = _body_of(self._causal)
        self.selects = self._probe()
        """True when logits are computed for labelled tokens only."""

    def __call__(self, batch: Batch) -> TokenLogits:
        """Logits for all labelled tokens at once."""
        if self.selects:
            hidden, targets = self._labelled(batch, self._hidden(batch))
            return TokenLogits(logits=self._head(hidden), targets=targets)
        logits, targets = self._labelled(batch, self._whole(batch))
        return TokenLogits(logits=logits, targets=targets)

    def pieces(self, batch: Batch) -> Iterator[TokenLogits]:
        """The same, a piece at a time; for passes without gradients."""
        if not self.selects:
            yield self(batch)
            return
        hidden, targets = self._labelled(batch, self._hidden(batch))
        for part, wanted in _cut(hidden, targets):
            yield TokenLogits(logits=self._head(part), targets=wanted)

    def backward(self, batch: Batch, *, weigh: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Add the gradients of the weighed sum of losses; returns that sum as it is, in nats.

        Each piece goes back to the hidden states at once, and these then go back through the model
        together: by the chain rule the same gradient as in one go.
        """
        if not self.selects or batch.num_trained_tokens <= PIECE_TOKENS:
            return _backward(sum_of_losses(self(batch)), weigh=weigh)
        hidden, targets = self._labelled(batch, self._hidden(batch))
        leaf = hidden.detach().requires_grad_()
        total = 0.0
        for part, wanted in _cut(leaf, targets):
            tokens = TokenLogits(logits=self._head(part), targets=wanted)
            total += _backward(sum_of_losses(tokens), weigh=weigh)
        hidden.backward(leaf.grad)  # type: ignore[no-untyped-call]
        return total

    def _labelled(self, batch: Batch, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(values, targets) of the labelled tokens, in row order."""
        targets = batch.labels[:, 1:]
        labelled = targets != IGNORED
        return values[:, :-1][labelled], targets[labelled]

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._shaped(self._causal.get_output_embeddings()(hidden))

    def _shaped(self, logits: torch.Tensor) -> torch.Tensor:
        """What some families do to their logits after the head, read from the config.

        The probe cannot be trusted to notice: a cap does little to the small logits of odd tokens.
        """
        config = self._causal.config.get_text_config()
        scale = getattr(config, "logit_scale", None)  # Cohere
        divisor = getattr(config, "logits_scaling", None)  # Granite
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        if scale:
            logits = logits * scale
        if divisor:
            logits = logits / divisor
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _hidden(self, batch: Batch) -> torch.Tensor:
        output = self._body(**batch.inputs(), use_cache=False)
        hidden: torch.Tensor = output[0]
        return hidden

    def _whole(self, batch: Batch) -> torch.Tensor:
        output = self._model(**batch.inputs(), use_cache=False)
        logits: torch.Tensor = output.logits
        return logits

    def _probe(self) -> bool:
        """Compare both ways on a few tokens."""
        head = self._causal.get_output_embeddings()
        if head is None or self._body is self._causal:
            return False
        ids = torch.arange(2, 10, device=self._model.device).unsqueeze(0)
        batch = Batch(ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                whole = self._whole(batch).float()
                selected = self._selected(batch)
        finally:
            self._model.train(was_training)
        if selected is None or whole.shape != selected.shape:
            return False
        difference = (whole - selected).abs().max()
        return bool(difference <= _PROBE_TOLERANCE * whole.abs().max().clamp(min=1.0))

    def _selected(self, batch: Batch) -> torch.Tensor | None:
        """Logits by body and head; None where what was taken for the body does not fit the head."""
        try:
            return self._head(self._hidden(batch)).float()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return None


def _body_of(causal: Any) -> Any:
    """What makes the last hidden states; the model itself where that cannot be told apart."""
    if causal.base_model is not causal:
        return causal.base_model
    # Llama 4: its prefix names a part of the model with images, which one for text does not have.
    inner = getattr(causal, "model", None)
    return inner if isinstance(inner, PreTrainedModel) else causal


def whole_logits_notice(*, rows: int, length: int, vocabulary: int) -> tuple[str, int]:
    """What to say where logits exist for every token, and the bytes they take in fp32."""
    num_bytes = 4 * rows * length * vocabulary
    return (
        "The output head of this model does more than its config tells, so its logits are "
        f"computed for all tokens at once: {rows} x {length} tokens x {vocabulary} words take "
        f"{size_text(num_bytes)} in fp32, and their gradients as much again; if memory is short, "
        "set training.microBatchSize or training.sequenceLength lower",
        num_bytes,
    )


def _cut(
    values: torch.Tensor, targets: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(torch.split(values, PIECE_TOKENS), torch.split(targets, PIECE_TOKENS), strict=True)


def _backward(losses: torch.Tensor, *, weigh: Callable[[torch.Tensor], torch.Tensor]) -> float:
    weigh(losses).backward()  # type: ignore[no-untyped-call]
    return float(losses.detach())


def sum_of_losses(tokens: TokenLogits) -> torch.Tensor:
    """Cross entropy in nats, summed over tokens, in fp32."""
    return functional.cross_entropy(tokens.logits.float(), tokens.targets, reduction="sum")
