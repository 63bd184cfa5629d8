"""A tokenizer that is not the model's (S4), where its ids would all have an embedding."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from anneal_pipeline.data.row_texts import texts_of
from anneal_pipeline.diagnosis import Diagnosis
from anneal_pipeline.training.vocabulary import TOKENIZER_FIX

KNOWN_SHARE = 0.9
"""Of the embeddings; rounding them up to a handy number leaves 2.4 % idle in published models."""
SAMPLE_TEXTS, SAMPLE_CHARACTERS = 32, 2000
LOST_SHARE, LOST_TEXTS = 0.1, 2
"""Of the texts; a rare sign that a tokenizer does not know is in fewer."""


def of_vocabulary(
    tokenizer: PreTrainedTokenizerBase, *, rows: Iterable[Mapping[str, Any]], num_embeddings: int
) -> Iterator[Diagnosis]:
    """`rows` as they were written; the first of them are put into tokens and back."""
    known = len(tokenizer)
    if known < KNOWN_SHARE * num_embeddings:
        yield Diagnosis(
            row="S4",
            symptom=f"The tokenizer knows {known} tokens, the model has embeddings for "
            f"{num_embeddings}",
            cause="the tokenizer is that of another model, and its ids stand for other tokens",
            fix=TOKENIZER_FIX,
        )
    # Once each: a system message may be in every row.
    first_texts = dict.fromkeys(islice(_texts(rows), SAMPLE_TEXTS))
    texts = [text for text in first_texts if _letters(text)]
    lost = [text for text in texts if not _comes_back(text, tokenizer)]
    if len(lost) >= LOST_TEXTS and len(lost) > LOST_SHARE * len(texts):
        first = lost[0][:40]
        came = _back(first, tokenizer)[:40]
        yield Diagnosis(
            row="S4",
            case="lost",
            symptom=f"{len(lost)} of {len(texts)} texts of the training rows do not come back from "
            f"the tokenizer, as {json.dumps(first, ensure_ascii=False)}, which becomes "
            f"{json.dumps(came, ensure_ascii=False)}",
            cause="the tokenizer does not know this writing, or is damaged",
            fix=f"{TOKENIZER_FIX}, or take a model that was trained on text of this kind",
        )


def _texts(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield from (text[:SAMPLE_CHARACTERS] for text in texts_of(row))


def _comes_back(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    return _letters(_back(text, tokenizer)) == _letters(text)


def _back(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    back: str = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    return back


def _letters(text: str) -> str:
    """Letters and digits alone: case, accents and blanks are what tokenizers differ in."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(sign for sign in plain if sign.isalnum())
