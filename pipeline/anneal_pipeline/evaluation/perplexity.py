"""Perplexity over a split: sums over tokens, so that batch size and padding do not count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from peft import PeftModel

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.errors import DOES_NOT_FIT, UserError
from anneal_pipeline.observer import EvaluationReport
from anneal_pipeline.training.batches import Batch, collate, micro_batches
from anneal_pipeline.training.loss import LogitsPath, sum_of_losses
from anneal_pipeline.training.memory import RowLimit, free_memory, is_out_of_memory
from anneal_pipeline.training.ranks import Ranks

PERPLEXITY = "perplexity"
RESPONSE_PERPLEXITY = "responsePerplexity"
TOKEN_ACCURACY = "tokenAccuracy"  # noqa: S105  # tokens of text, no secret
LOSS = "loss"

ROWS_PER_GROUP = 16
"""Rows that one rank takes at a time: the same on all ranks, whatever memory each of them has."""
MAX_EXPONENT = 700.0
"""exp of more than this is no fp64 number."""


@dataclass(frozen=True, kw_only=True)
class SplitMetrics:
    metrics: dict[str, float]
    num_rows: int
    num_tokens: int
    """Tokens the response metrics are over."""

    def report(self, *, step: int, subject: str, split: str, seconds: float) -> EvaluationReport:
        return EvaluationReport(
            step=step,
            subject=subject,
            split=split,
            metrics=self.metrics,
            num_rows=self.num_rows,
            num_tokens=self.num_tokens,
            seconds=seconds,
        )


class OnHalved(Protocol):
    def __call__(self, rows: int, *, rank: int = 0) -> None:
        """Memory ran out on a rank, which goes on with so many rows per forward pass."""


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Measures the model as it is at the moment: adapters on or off is the caller's."""

    model: PeftModel
    path: LogitsPath
    ranks: Ranks
    pad_id: int
    limit: RowLimit
    """Rows per forward pass; lowered where memory runs out."""
    wanted: Sequence[str]
    should_stop: Callable[[], bool]
    on_progress: Callable[[str, int, int], None]
    """Called with (stage, batches done, batches in all)."""
    on_halved: OnHalved
    """Called on the first rank, for every rank."""
    _untold: list[int] = field(default_factory=list, init=False)
    """What this rank, which is not the first, has gone down to since it last met the others."""

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
        groups = micro_batches(order, ROWS_PER_GROUP)
        sums = [0.0, 0.0, 0.0]
        for first in range(0, len(groups), self.ranks.world_size):
            # Every rank takes part in the vote, also one that has no batch in this round.
            if self.ranks.any(self.should_stop()):
                return None
            mine = groups[first + self.ranks.rank : first + self.ranks.rank + 1]
            with self.ranks.together():
                for rows in mine:
                    found = self._group_sums(split, rows, train_all=train_all)
                    sums = [total + value for total, value in zip(sums, found, strict=True)]
            self._tell_of_others()
            self.on_progress(stage, min(first + self.ranks.world_size, len(groups)), len(groups))
        return self.ranks.sum(sums)

    def _group_sums(
        self, split: PreparedSplit, rows: Sequence[int], *, train_all: bool
    ) -> tuple[float, float, float]:
        """Sums over some rows, in as many pieces as memory wants; ranks need not agree on it."""
        loss = correct = count = 0.0
        left = list(rows)
        while left:
            part = left[: self.limit.rows]
            batch = collate(split, part, pad_id=self.pad_id, train_all=train_all)
            try:
                sums = self._batch_sums(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                sums = None
            if sums is None:
                self._lower(rows=len(part), length=batch.ids.shape[1])
                continue
            loss, correct, count = loss + sums[0], correct + sums[1], count + sums[2]
            left = left[len(part) :]
        return loss, correct, count

    def _lower(self, *, rows: int, length: int) -> None:
        free_memory(self.ranks.device)
        if not self.limit.halve(rows=rows):
            raise UserError(
                DOES_NOT_FIT,
                f"Memory ran out in an evaluation with {rows} {'row' if rows == 1 else 'rows'} of "
                f"up to {length} tokens; "
                + ("set training.recovery.oom to recover; or " if rows > 1 else "")
                + f"set training.sequenceLength to {max(8, length // 2)}",
            )
        if self.ranks.is_first:
            self.on_halved(self.limit.rows)
        else:
            self._untold.append(self.limit.rows)

    def _tell_of_others(self) -> None:
        """Only the first rank is heard outside, so it tells for those that have gone down."""
        if not self.ranks.any(bool(self._untold)):
            return
        for rank, lowered in enumerate(self.ranks.gather(tuple(self._untold))):
            for rows in lowered if self.ranks.is_first else ():
                self.on_halved(rows, rank=rank)
        self._untold.clear()

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
