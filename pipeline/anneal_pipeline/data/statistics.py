"""What people look at before they burn a GPU: lengths, drops, and rows as the model sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from anneal_pipeline.data.files import TRAIN
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.data.quarantine import Quarantine
from anneal_pipeline.data.report import DataReport

NUM_PREVIEWS = 3
PREVIEW_TOKENS = 600
NUM_BINS = 24
_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Piece:
    """A run of tokens of a row, all trained or none."""

    text: str
    is_trained: bool


@dataclass(frozen=True, kw_only=True)
class Preview:
    num_tokens: int
    pieces: tuple[Piece, ...]
    is_cut: bool
    """The page shows the first tokens only."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """`counts[i]` rows have from `i * width + 1` to `(i + 1) * width` tokens."""

    title: str
    width: int
    counts: tuple[int, ...]
    percentiles: Mapping[int, int]

    @property
    def longest(self) -> int:
        return self.percentiles[100]


@dataclass(frozen=True, kw_only=True)
class Drop:
    """One reason for which rows were left out, with its first row."""

    reason: str
    count: int
    where: str
    detail: str
    preview: str


@dataclass(frozen=True, kw_only=True)
class Statistics:
    source: str
    report: DataReport
    histograms: tuple[Histogram, ...]
    drops: tuple[Drop, ...]
    previews: tuple[Preview, ...]


def statistics_of(
    report: DataReport,
    splits: Mapping[str, PreparedSplit],
    quarantine: Quarantine,
    *,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
) -> Statistics:
    train = splits[TRAIN]
    return Statistics(
        source=source,
        report=report,
        histograms=tuple(_histograms(train)),
        drops=tuple(_drops(quarantine)),
        previews=tuple(
            _preview(train, index, tokenizer=tokenizer)
            for index in range(min(NUM_PREVIEWS, len(train)))
        ),
    )


def _histograms(train: PreparedSplit) -> Iterator[Histogram]:
    lengths = train.offsets[1:] - train.offsets[:-1]
    yield histogram_of("Tokens of a row", lengths)
    yield histogram_of("Trained tokens of a row", trained_tokens(train))


def trained_tokens(split: PreparedSplit) -> torch.Tensor:
    """How many tokens of every row are trained.

    Part by part, because NumPy would first make eight bytes of every token.
    """
    parts = []
    for first in range(0, len(split), _ROWS_AT_A_TIME):
        offsets = split.offsets[first : first + _ROWS_AT_A_TIME + 1].numpy()
        flags = split.is_response[offsets[0] : offsets[-1]].numpy()
        parts.append(np.add.reduceat(flags, offsets[:-1] - offsets[0], dtype=np.int64))
    return torch.from_numpy(np.concatenate(parts))


def histogram_of(title: str, values: torch.Tensor) -> Histogram:
    """Count values of 1 and more in bins of equal width."""
    longest = int(values.max())
    width = max(1, -(-longest // NUM_BINS))
    counts = torch.bincount((values - 1).clamp(min=0) // width).tolist()
    ordered = values.sort().values.tolist()
    shares = (5, 50, 95, 100)
    percentiles = {p: ordered[max(0, -(-len(ordered) * p // 100) - 1)] for p in shares}
    return Histogram(title=title, width=width, counts=tuple(counts), percentiles=percentiles)


def _drops(quarantine: Quarantine) -> Iterator[Drop]:
    for reason, count in quarantine.counts.most_common():
        first = quarantine.first[reason]
        yield Drop(
            reason=reason,
            count=count,
            where=f"row {first.place.line} of {first.place.file}",
            detail=first.detail,
            preview=first.preview,
        )


def _preview(split: PreparedSplit, index: int, *, tokenizer: PreTrainedTokenizerBase) -> Preview:
    ids, is_response = (values.tolist() for values in split.row(index))
    shown = list(zip(ids, is_response, strict=True))[:PREVIEW_TOKENS]
    pieces = tuple(
        Piece(tokenizer.decode([token for token, _ in run]), bool(is_trained))
        for is_trained, run in groupby(shown, key=lambda pair: pair[1])
    )
    return Preview(num_tokens=len(ids), pieces=pieces, is_cut=len(ids) > len(shown))
