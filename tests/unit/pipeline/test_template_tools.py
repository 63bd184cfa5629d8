"""Calls of tools, their results and definitions in the chat templates that take them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from tests.unit.pipeline.template_families import (
    FAMILIES,
    WITH_TOOLS,
    Family,
    families,
    trained_spans,
)

from anneal_pipeline.data.conversation import Conversation, Turn
from anneal_pipeline.data.rows import Place
from anneal_pipeline.data.template import TemplateRefusedRowError, render
from anneal_pipeline.data.tokens import Tokenisation
from anneal_pipeline.errors import TEMPLATE_UNSUPPORTED, UserError

ARGUMENTS = {"city": 'Sao "P" Paulo', "days": 2, "tags": ["a"], "deep": {"x": True}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLS = [{"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}]
TOOL_ROW = Conversation(
    place=Place(file="rows.jsonl", line=3),
    turns=(
        Turn("user", "How is it?"),
        Turn("assistant", "", {"tool_calls": CALLS}),
        Turn("tool", "sunny intervals", {"name": "weather"}),
        Turn("assistant", "Sunny."),
    ),
    tools=(TOOL,),
)


def call_in(text: str) -> tuple[str, object]:
    """Name and arguments of the one call, in whichever form the family writes them."""
    fenced = re.search(r"function<[^>]+sep[^>]+>(\w+)\n```json\n(.*)\n```", text)
    if fenced:
        return fenced[1], json.loads(fenced[2])
    call = json.loads(re.sub(r"^\[|\]$", "", text[text.index("{") : text.rindex("}") + 1]))
    return call["name"], call.get("arguments", call.get("parameters"))


@families(WITH_TOOLS)
def test_tool_arguments_double_encoded_calls_come_back_as_they_were(
    made: dict[str, Tokenisation], family: Family
) -> None:
    """Pitfall: tool arguments double-encoded."""
    tokenizer = made[family.name].tokenizer
    call, answer = trained_spans(made[family.name], TOOL_ROW)
    text = tokenizer.decode(call)
    assert call_in(text) == ("weather", ARGUMENTS)
    assert text.endswith(family.stop or family.eos)
    assert "null" not in text
    # The frame of a reasoning model's thought is there once in an exchange with tools, too.
    assert tokenizer.decode(answer) == family.trained("Sunny.", is_last=True)


@families(WITH_TOOLS)
def test_fewer_turns_with_calls_and_results_render_to_a_prefix(
    made: dict[str, Tokenisation], family: Family
) -> None:
    tokenizer = made[family.name].tokenizer
    result = Turn("tool", "rain", {"name": "weather"})
    question, call, first, answer = TOOL_ROW.turns
    turns = (question, *(call, first, result) * 2, answer)
    whole = render(tokenizer, replace(TOOL_ROW, turns=turns))
    for number, num_answers in ((2, 1), (5, 2), (8, 3)):
        part = render(tokenizer, replace(TOOL_ROW, turns=turns[:number]))
        assert whole.text.startswith(part.text)
        assert whole.spans[:num_answers] == part.spans


@families(WITH_TOOLS)
def test_a_second_question_keeps_calls_and_tools_or_is_refused(
    made: dict[str, Tokenisation], family: Family
) -> None:
    tokenizer = made[family.name].tokenizer
    row = replace(TOOL_ROW, turns=TOOL_ROW.turns * 2)
    if not (family.keeps_turns and family.keeps_tools):
        with pytest.raises(UserError, match="changes earlier text") as caught:
            render(tokenizer, row)
        assert caught.value.reason == TEMPLATE_UNSUPPORTED
        return
    whole, part = render(tokenizer, row), render(tokenizer, TOOL_ROW)
    assert whole.text.startswith(part.text)
    assert whole.spans[:2] == part.spans


@families(WITH_TOOLS)
def test_tool_results_and_definitions_are_told_but_not_trained(
    made: dict[str, Tokenisation], family: Family
) -> None:
    tokenizer = made[family.name].tokenizer
    text = render(tokenizer, TOOL_ROW).text
    spans = trained_spans(made[family.name], TOOL_ROW)
    trained = "".join(tokenizer.decode(span) for span in spans)
    for told in ("sunny intervals", '{"type": "object"}'):
        assert told in text
    assert "sunny intervals" not in trained
    assert '"type"' not in trained


@families([family for family in FAMILIES if not family.takes_tools])
def test_a_template_without_tools_refuses_rows_that_define_them(
    made: dict[str, Tokenisation], family: Family
) -> None:
    with pytest.raises(UserError, match="no place for tools") as caught:
        render(made[family.name].tokenizer, TOOL_ROW)
    assert caught.value.reason == TEMPLATE_UNSUPPORTED


def test_a_call_that_the_template_drops_is_refused(made: dict[str, Tokenisation]) -> None:
    row = Conversation(place=TOOL_ROW.place, turns=TOOL_ROW.turns[:2])
    with pytest.raises(TemplateRefusedRowError, match="writes no tool calls"):
        render(made["chatml"].tokenizer, row)
