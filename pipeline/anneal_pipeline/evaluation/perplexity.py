"""Perplexity over a split: sums over tokens, so that batch size and padding do not count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.training.batches import Batch, collate, micro_batches
from anneal_pipeline.training.loss import LogitsPath, sum_of_losses
from anneal_pipeline.training.ranks import Ranks

PERPLEXITY = "perplexity"
RESPONSE_PERPLEXITY = "responsePerplexity"
TOKEN_ACCURACY = "tokenAccuracy"  # noqa: S105  # tokens of text, no secret
LOSS = "loss"

MAX_EXPONENT = 700.0
"""exp of more than this is no fp64 number."""


@dataclass(frozen=True, kw_only=True)
class SplitMetrics:
    metrics: dict[str, float]
    num_rows: int
    num_tokens: int
    """Tokens the response metrics are over."""


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Measures the model as it is at the moment: adapters on or off is the caller's."""

    model: PeftModel
    path: LogitsPath
    ranks: Ranks
    pad_id: int
    batch_size: int
    wanted: Sequence[str]
    should_stop: Callable[[], bool]
    on_progress: Callable[[str, int, int], None]
    """Called with (stage, batches done, batches in all)."""

    def measure(self, split: PreparedSplit, *, stage: str) -> SplitMetrics | None:
        """Metrics over a split, for `stage`; None if asked to stop on the way."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                response = self._sums(split, stage=stage, train_all=False)
                whole = None
                if response is not None and PERPLEXITY in self.wanted:
                    whole = self._sums(split, stage=stage, train_all=True)
        finally:
            self.model.train(was_training)
        if response is None or (whole is None and PERPLEXITY in self.wanted):
            return None
        return self._metrics(response, whole, num_rows=len(split))

    def _sums(self, split: PreparedSplit, *, stage: str, train_all: bool) -> list[float] | None:
        """(loss, correct, tokens) over all ranks."""
        lengths = split.lengths()
        order = sorted(range(len(split)), key=lambda row: -lengths[row])
        groups = micro_batches(order, self.batch_size)
        sums = [0.0, 0.0, 0.0]
        for first in range(0, len(groups), self.ranks.world_size):
            # Every rank takes part in the vote, also one that has no batch in this round.
            if self.ranks.any(self.should_stop()):
                return None
            mine = groups[first + self.ranks.rank : first + self.ranks.rank + 1]
            for rows in mine:
                batch = collate(split, rows, pad_id=self.pad_id, train_all=train_all)
                for index, value in enumerate(self._batch_sums(batch)):
                    sums[index] += value
            self.on_progress(stage, min(first + self.ranks.world_size, len(groups)), len(groups))
        return self.ranks.sum(sums)

    def _batch_sums(self, batch: Batch) -> tuple[float, float, float]:
        loss = correct = count = 0.0
        for tokens in self.path.pieces(batch.to(self.ranks.device)):
            loss += float(sum_of_losses(tokens))
            correct += float((tokens.logits.argmax(-1) == tokens.targets).sum())
            count += len(tokens.targets)
        return loss, correct, count

    def _metrics(
        self, response: list[float], whole: list[float] | None, *, num_rows: int
    ) -> SplitMetrics:
        loss, correct, num_tokens = response
        metrics = {
            LOSS: loss / num_tokens,
            RESPONSE_PERPLEXITY: _perplexity(loss, num_tokens),
            TOKEN_ACCURACY: correct / num_tokens,
        }
        if whole is not None:
            metrics[PERPLEXITY] = _perplexity(whole[0], whole[2])
        return SplitMetrics(metrics=metrics, num_rows=num_rows, num_tokens=int(num_tokens))


def _perplexity(loss: float, num_tokens: float) -> float:
    return math.exp(min(loss / num_tokens, MAX_EXPONENT))
