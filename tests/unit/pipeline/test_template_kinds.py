"""Every chat template with a tokenizer of every kind: what is trained is the answers, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from tests.unit.pipeline.template_families import (
    FAMILIES,
    KEEPING,
    Family,
    conversation,
    families,
    settled,
    trained_spans,
)
from tests.unit.pipeline.tokenizer_kinds import BLANK, KINDS, Kind

from anneal_pipeline.data.template import render
from anneal_pipeline.data.tokens import Tokenisation

ANSWERS = [
    "It is blue.",
    "Größe: naïve façade, \u4f60\u597d\uff0c\u4e16\u754c",
    "\u4f60\u597d",  # unknown from the first character on
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 ok \U0001f600",
    "\ufb01nd \u00bd of e\u0301 \u2460",  # normalising changes these
    "  two  blanks  ",
    "\n\nfirst\n\n- second\n",
    "a",
]
kinds = pytest.mark.parametrize("kind", [pytest.param(k, id=k.name) for k in KINDS])


@cache
def tokenisation_of(family: Family, kind: Kind) -> Tokenisation:
    return settled(family, kind)


def assert_trained(family: Family, kind: Kind, span: list[int], want: str) -> None:
    """Equal but for what the kind of tokenizer does to any text: it normalises, special tokens
    take the blanks behind them, and behind one a piece gets a blank in front."""
    tokenizer = tokenisation_of(family, kind).tokenizer
    anchor = tokenizer.convert_tokens_to_ids("a")
    got = tokenizer.decode([anchor, *span]).removeprefix("a").replace(BLANK, " ")
    read = kind.reads(want, family.special).replace(BLANK, " ")
    if kind.takes_blanks:
        got, read = got.lstrip(), read.lstrip()
    assert got in ({read, read.removeprefix(" ")} if kind.prepends else {read})


@families(FAMILIES)
@kinds
def test_what_is_trained_is_the_answer_and_the_end_the_template_gives_it(
    family: Family, kind: Kind
) -> None:
    for answer in ANSWERS:
        row = conversation("What?\n", answer)
        (span,) = trained_spans(tokenisation_of(family, kind), row)
        assert_trained(family, kind, span, family.trained(answer, is_last=True))


@families(KEEPING)
@kinds
def test_every_answer_of_a_conversation_is_trained_to_the_letter(
    family: Family, kind: Kind
) -> None:
    row = conversation(*(text for answer in ANSWERS for text in ("\U0001f600 so?", answer)))
    spans = trained_spans(tokenisation_of(family, kind), row)
    assert len(spans) == len(ANSWERS)
    for number, (span, answer) in enumerate(zip(spans, ANSWERS, strict=True), start=1):
        want = family.trained(answer, is_last=number == len(ANSWERS))
        assert_trained(family, kind, span, want)


@families(KEEPING)
@kinds
def test_fewer_turns_are_a_prefix_of_more_in_text_and_in_tokens(family: Family, kind: Kind) -> None:
    tokenisation = tokenisation_of(family, kind)
    contents = [text for answer in ANSWERS for text in ("so?", answer)]
    whole = tokenisation.row(conversation(*contents))
    text = render(tokenisation.tokenizer, conversation(*contents)).text
    for number in (2, 6, 10):
        row = conversation(*contents[:number])
        shorter = render(tokenisation.tokenizer, row).text.removesuffix(family.closing.strip())
        assert text.startswith(shorter)
        part = tokenisation.row(row)
        end = family.stop or family.eos
        kept = _last(part.ids, tokenisation.tokenizer.convert_tokens_to_ids(end)) + 1
        assert whole.ids[:kept] == part.ids[:kept]
        assert whole.is_response[:kept] == part.is_response[:kept]


def _last(ids: Sequence[int], wanted: int) -> int:
    return max(position for position, token in enumerate(ids) if token == wanted)
