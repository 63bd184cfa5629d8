"""Layouts are recognised from the rows, and what a row lacks has a name."""

from __future__ import annotations

import json
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
    return to_conversation([SourceRow(place=PLACE, fields=fields)], layout)


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


@pytest.mark.parametrize(
    ("columns", "fields", "want"),
    [
        pytest.param({"messages": "chat"}, {"chat": [USER, ASSISTANT]}, [], id="messages"),
        pytest.param({"prompt": "ask"}, {"ask": "q", "completion": "a"}, [], id="prompt"),
        pytest.param({"completion": "say"}, {"prompt": "q", "say": "a"}, [], id="completion"),
        pytest.param({"instruction": "task"}, {"task": "q", "output": "a"}, [], id="instruction"),
        pytest.param(
            {"input": "data"},
            {"instruction": "Add", "data": "1 2", "output": "a"},
            [("user", "Add\n\n1 2"), ("assistant", "a")],
            id="input",
        ),
        pytest.param({"response": "said"}, {"instruction": "q", "said": "a"}, [], id="response"),
        pytest.param(
            {"system": "rules"},
            {"prompt": "q", "completion": "a", "rules": "Be brief"},
            [("system", "Be brief"), ("user", "q"), ("assistant", "a")],
            id="system",
        ),
    ],
)
def test_a_column_of_another_name_is_read_as_what_it_means(
    columns: dict[str, str], fields: dict[str, Any], want: list[tuple[str, str]]
) -> None:
    # Names that the layout knows stand beside the one that is named, and are not taken.
    others = {"input": "not this"} if "input" in columns else {}
    assert turns(read({**others, **fields}, columns=columns)) == (
        want or [("user", "q"), ("assistant", "a")]
    )


def test_a_text_of_another_name_is_read() -> None:
    result = read({"story": "Once", "text": "not this"}, columns={"text": "story"})
    assert isinstance(result, Conversation)
    assert result.text == "Once"


def test_tools_of_another_name_are_read() -> None:
    fields = {"messages": [USER, ASSISTANT], "functions_json": [{"name": "add"}]}
    result = read(fields, columns={"tools": "functions_json"})
    assert isinstance(result, Conversation)
    assert [tool["function"]["name"] for tool in result.tools] == ["add"]


CALL = {"name": "add", "arguments": {"x": 1}}
CALLED = [("user", "q"), ("assistant", ""), ("tool", "2"), ("assistant", "a")]
TOOL_TURNS: list[dict[str, Any]] = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]},
    {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ASSISTANT,
]
SHAREGPT = [
    {"from": "human", "value": "q"},
    {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": "2"},
    {"from": "gpt", "value": "a"},
]
PAIR = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("fields", "kind", "want"),
    [
        pytest.param({"messages": [USER, ASSISTANT]}, "messages", PAIR, id="messages"),
        pytest.param(
            {"messages": json.dumps([USER, ASSISTANT])}, "messages", PAIR, id="messages as JSON"
        ),
        pytest.param({"conversations": SHAREGPT}, "sharegpt", CALLED, id="ShareGPT"),
        pytest.param(
            {"conversations": SHAREGPT[:1] + SHAREGPT[3:], "system": "s"},
            "sharegpt",
            [("system", "s"), *PAIR],
            id="ShareGPT with system",
        ),
        pytest.param({"prompt": "q", "completion": "a"}, "prompt-completion", PAIR, id="prompt"),
        pytest.param(
            {"prompt": [USER], "completion": [ASSISTANT]},
            "prompt-completion",
            PAIR,
            id="prompt of messages",
        ),
        pytest.param({"question": "q", "answer": "a"}, "instruction", PAIR, id="question, answer"),
        pytest.param({"instruction": "q", "output": "a"}, "instruction", PAIR, id="Alpaca"),
        pytest.param(
            {"messages": TOOL_TURNS, "tools": [{"name": "add"}]}, "tools", CALLED, id="tools"
        ),
    ],
)
def test_every_layout_is_recognised_and_means_the_same(
    fields: dict[str, Any], kind: str, want: list[tuple[str, str]]
) -> None:
    config = DatasetConfig.parse({"uri": "x"})
    layout = choose_layout(config, [SourceRow(place=PLACE, fields=fields)])
    assert layout.kind == kind
    assert turns(read(fields)) == want
    assert turns(read(fields, layout=kind)) == want


def test_plain_text_has_no_turns() -> None:
    result = read({"text": "Once upon a time"})
    assert isinstance(result, Conversation)
    assert (result.text, result.turns) == ("Once upon a time", ())


ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "tools",
    [
        pytest.param([ADD], id="objects"),
        pytest.param(json.dumps([ADD]), id="JSON of the list"),
        pytest.param([json.dumps(ADD)], id="list of JSON"),
        pytest.param([ADD["function"]], id="without the wrapper"),
        pytest.param([ADD["function"] | {"parameters": '{"type": "object"}'}], id="JSON inside"),
    ],
)
@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([{"function": CALL}], id="objects"),
        pytest.param(json.dumps([CALL]), id="JSON of the list"),
        pytest.param([{"function": CALL | {"arguments": '{"x": 1}'}}], id="arguments as JSON"),
        pytest.param([json.dumps({"function": CALL})], id="list of JSON"),
    ],
)
def test_tool_arguments_are_objects_however_the_file_writes_them(tools: Any, calls: Any) -> None:
    messages = [USER, {"role": "assistant", "tool_calls": calls}, *TOOL_TURNS[2:]]
    result = read({"messages": messages, "tools": tools})
    assert isinstance(result, Conversation)
    assert list(result.tools) == [ADD]
    assert result.turns[1].tool_calls == [{"type": "function", "function": CALL}]


@pytest.mark.parametrize(
    ("calls", "detail"),
    [
        pytest.param("[{", "no valid JSON in the tool calls of message 2", id="broken JSON"),
        pytest.param([{"function": {}}], "without a name", id="no name"),
        pytest.param([{"name": "f", "arguments": "[1]"}], "no object", id="arguments a list"),
    ],
)
def test_broken_tool_calls_are_named(calls: Any, detail: str) -> None:
    messages = [USER, {"role": "assistant", "tool_calls": calls}]
    result = read({"messages": messages}, sample=GOOD)
    assert isinstance(result, BadRow)
    assert result.reason == "invalid-tools"
    assert detail in result.detail


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        pytest.param("f\u00c3\u00bcr", "stands for '\u00fc'", id="UTF-8 read as Latin-1"),
        pytest.param("it\u00e2\u20ac\u2122s", "stands for '\u2019'", id="as Windows-1252"),
        pytest.param("lost \ufffd byte", "U+FFFD", id="replacement character"),
        pytest.param("a\x00b", "U+0000", id="zero byte"),
        pytest.param("\ud83d", "surrogate", id="half a character"),
    ],
)
def test_damaged_text_is_named_with_what_it_stood_for(text: str, detail: str) -> None:
    result = read({"messages": [USER, {"role": "assistant", "content": text}]}, sample=GOOD)
    assert isinstance(result, BadRow)
    assert result.reason == "damaged-text"
    assert detail in result.detail


@pytest.mark.parametrize(
    "text", ["CAF\u00c9\u00bb", "\u00c2ge", "na\u00efve \u2013 \u4e2d\U0001f600", "a\tb\n"]
)
def test_foreign_letters_are_no_damage(text: str) -> None:
    assert isinstance(
        read({"messages": [USER, {"role": "assistant", "content": text}]}), Conversation
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param({"system": "sistem"}, "names sistem, which none", id="a slip"),
        pytest.param({"text": "q"}, "has no effect on rows of the layout messages", id="unused"),
    ],
)
def test_columns_without_effect_are_refused(columns: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(GOOD, columns=columns)
    assert caught.value.reason == "DatasetLayoutUnknown"


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
