"""Rows that are long for no good reason (S1): a few far beyond the others, or by their template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from anneal_pipeline.data.prepared import PreparedSplit, read_rows
from anneal_pipeline.data.row_texts import texts_of
from anneal_pipeline.diagnosis import Diagnosis

LONG_ROW = 512
"""Tokens; below it no row decides over memory."""
FAR_FACTOR = 4
"""Of the length that 95 % of the rows stay within. A usual spread, from short to long answers,
stays below it."""
LENGTH_STEP = 64
TEMPLATE_SHARE, TEMPLATE_TOKENS = 0.5, 128
"""Share of a row, and tokens. A turn costs about five tokens and a system message that a template
brings with it thirty, which make up half of a short row and matter to nobody."""
SAMPLE_ROWS = 64


def of_lengths(train: PreparedSplit, *, is_packed: bool, overlength: str) -> Iterator[Diagnosis]:
    """Of the training rows; packed ones fill sequences of one length, however long they are."""
    lengths = np.sort(np.asarray(train.lengths()))
    longest, usual = int(lengths[-1]), int(lengths[int(0.95 * (len(lengths) - 1))])
    if is_packed or longest < LONG_ROW or longest <= FAR_FACTOR * usual:
        return
    limit = -(-2 * usual // LENGTH_STEP) * LENGTH_STEP
    count = int((lengths > limit).sum())
    rows = "row has" if count == 1 else "rows have"
    what = "drops" if overlength == "drop" else "truncates"
    also = " and dataset.filters.overlength to drop" if overlength == "fail" else ""
    yield Diagnosis(
        row="S1",
        symptom=f"The longest training row has {longest} tokens, where half have at most "
        f"{int(median(lengths))} and 95 % at most {usual}",
        cause=f"{count} {rows} more than {limit} tokens, and the memory of a step is planned for "
        "the longest",
        fix=f"set training.sequenceLength to {limit}{also}, which "
        f"{'drops' if also else what} {'it' if count == 1 else 'them'}",
    )


def of_template(
    train: PreparedSplit, folder: Path, *, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Diagnosis]:
    """Of the first training rows, which `folder` has as they were written."""
    lengths = train.lengths()
    sample = [
        (length, max(0, length - _content_tokens(row, tokenizer)))
        for length, row in zip(lengths, islice(read_rows(folder), SAMPLE_ROWS), strict=False)
        if "messages" in row
    ]
    if not sample:
        return
    tokens = int(median(added for _, added in sample))
    share = median(added / length for length, added in sample)
    if tokens >= TEMPLATE_TOKENS and share >= TEMPLATE_SHARE:
        yield Diagnosis(
            row="S1",
            case="template",
            symptom=f"The chat template adds {tokens} tokens to a row, {share:.0%} of it (medians "
            f"of {len(sample)} rows)",
            cause="it has text of its own, such as a long system message, or many short turns",
            fix="read the rows in data/report.md; give them a short system message, which takes "
            "the place of the template's, or shorten chat_template.jinja beside the weights",
        )


def _content_tokens(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> int:
    texts = list(texts_of(row))
    return sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
