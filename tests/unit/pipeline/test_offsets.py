"""Tokens that lie across the border of prompt and answer, or of answer and what follows."""

from __future__ import annotations

import pytest

from anneal_pipeline.data.offsets import Tokens
from anneal_pipeline.data.template import Span


def inside(text: str, tokens: list[tuple[str, int, int]], span: tuple[int, int]) -> list[str]:
    names = [name for name, _, _ in tokens]
    found = Tokens(
        text=text,
        ids=range(len(names)),
        offsets=[(start, end) for _, start, end in tokens],
        name_of=names.__getitem__,
    ).inside(Span(*span))
    return [names[position] for position in found]


@pytest.mark.parametrize(
    ("text", "tokens", "span", "want"),
    [
        pytest.param(
            "A: Hi.",
            [("A", 0, 1), (":", 1, 2), ("▁Hi", 2, 5), (".", 5, 6)],
            (3, 6),
            ["▁Hi", "."],
            id="a word with the blank of the prompt is the answer's",
        ),
        pytest.param(
            "A:\n\nHi",
            [("A:", 0, 2), ("\n\n", 2, 4), ("Hi", 4, 6)],
            (3, 6),
            ["Hi"],
            id="blanks of both are the prompt's",
        ),
        pytest.param(
            "AHi", [("AH", 0, 2), ("i", 2, 3)], (1, 3), ["i"], id="letters of both are the prompt's"
        ),
        pytest.param(
            "\né!",
            [("<0x0A>", 0, 2), ("<0xC3>", 0, 2), ("<0xA9>", 0, 2), ("!", 2, 3)],
            (1, 3),
            ["<0xC3>", "<0xA9>", "!"],
            id="bytes that share offsets are told apart",
        ),
        pytest.param(
            "q\n½",
            [("<0x0A>", 1, 3), ("<0x31>", 1, 3), ("<0xE2>", 1, 3)],
            (2, 3),
            ["<0x31>", "<0xE2>"],
            id="also where normalising made others of the answer",
        ),
        pytest.param(
            "\nHi", [("<unk>", 0, 3)], (1, 3), ["<unk>"], id="an unknown word is the answer's"
        ),
        pytest.param(
            "Hi</s> q",
            [("Hi", 0, 2), ("</s>", 2, 7), ("q", 7, 8)],
            (0, 6),
            ["Hi", "</s>"],
            id="a stop that takes the blank behind it is the answer's",
        ),
        pytest.param(
            "Hi\n<u>",
            [("Hi", 0, 2), ("<u>", 2, 6)],
            (0, 3),
            ["Hi"],
            id="a mark that takes the blank before it is not",
        ),
    ],
)
def test_which_tokens_are_the_answer_s(
    text: str, tokens: list[tuple[str, int, int]], span: tuple[int, int], want: list[str]
) -> None:
    assert inside(text, tokens, span) == want
