"""Layouts are recognised from the rows, and what a row lacks has a name."""

from __future__ import annotations

from typing import Any

import pytest

from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.layout import choose_layout
from anneal_pipeline.data.rows import BadRow, Place, SourceRow
from anneal_pipeline.data.turns import to_conversation
from anneal_pipeline.errors import UserError

PLACE = Place(file="support.jsonl", line=17)


def read(
    fields: dict[str, Any], sample: dict[str, Any] | None = None, **dataset: Any
) -> Conversation | BadRow:
    config = DatasetConfig.parse({"uri": "support.jsonl", **dataset})
    layout = choose_layout(config, [SourceRow(place=PLACE, fields=sample or fields)])
    return to_conversation(SourceRow(place=PLACE, fields=fields), layout)


def turns(result: Conversation | BadRow) -> list[tuple[str, str]]:
    assert isinstance(result, Conversation)
    return [(turn.role, turn.content) for turn in result.turns]


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("fields", "dataset", "want"),
    [
        pytest.param(
            {"messages": [USER, ASSISTANT]}, {}, [("user", "q"), ("assistant", "a")], id="messages"
        ),
        pytest.param(
            {"messages": [USER, ASSISTANT, USER]},
            {},
            [("user", "q"), ("assistant", "a")],
            id="a last question without answer is left out",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ASSISTANT]},
            {},
            [("user", "q"), ("assistant", "a")],
            id="content in text parts",
        ),
        pytest.param(
            {"instruction": "Add", "input": "1 2", "output": "3"},
            {},
            [("user", "Add\n\n1 2"), ("assistant", "3")],
            id="Alpaca",
        ),
        pytest.param(
            {"instruction": "Add", "input": "", "response": "3", "system": "Be brief"},
            {},
            [("system", "Be brief"), ("user", "Add"), ("assistant", "3")],
            id="Alpaca with response and system",
        ),
        pytest.param(
            {"q": "Add", "a": "3"},
            {"layout": "instruction", "columns": {"instruction": "q", "response": "a"}},
            [("user", "Add"), ("assistant", "3")],
            id="columns named by the job",
        ),
    ],
)
def test_reads_turns(
    fields: dict[str, Any], dataset: dict[str, Any], want: list[tuple[str, str]]
) -> None:
    assert turns(read(fields, **dataset)) == want


GOOD = {"messages": [USER, ASSISTANT]}


@pytest.mark.parametrize(
    ("messages", "want"),
    [
        pytest.param([USER], "no-assistant-message", id="no answer"),
        pytest.param([USER, {"role": "assistant", "content": " "}], "empty-response", id="blank"),
        pytest.param([ASSISTANT], "empty-prompt", id="no question"),
        pytest.param([{"role": "narrator", "content": "x"}], "unknown-role", id="unknown role"),
        pytest.param([{"content": "x"}], "missing-field", id="no role"),
        pytest.param([USER, {"role": "assistant", "content": 3}], "not-text", id="a number"),
        pytest.param("text", "missing-field", id="no list"),
    ],
)
def test_names_what_a_row_lacks(messages: object, want: str) -> None:
    result = read({"messages": messages}, sample=GOOD)
    assert isinstance(result, BadRow)
    assert result.reason == want


def test_unknown_fields_are_listed_with_what_is_expected() -> None:
    with pytest.raises(UserError) as caught:
        read({"title": "x", "body": "y"})
    assert caught.value.reason == "DatasetLayoutUnknown"
    assert "Row 17 of support.jsonl has the fields body, title" in caught.value.message
    assert "dataset.columns" in caught.value.message


def test_white_space_and_unicode_form_make_no_other_row() -> None:
    one = read({"messages": [USER, {"role": "assistant", "content": "caf\u00e9  au lait"}]})
    two = read({"messages": [USER, {"role": "assistant", "content": " cafe\u0301 au\nlait "}]})
    assert isinstance(one, Conversation)
    assert isinstance(two, Conversation)
    assert one.content_key() == two.content_key()
