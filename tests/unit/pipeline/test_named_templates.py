"""Models with several chat templates: each row is rendered with the one that serving takes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer

from anneal_pipeline.data.conversation import Conversation, Turn
from anneal_pipeline.data.rows import Place
from anneal_pipeline.data.template import TemplateRefusedRowError, render, settle_template
from anneal_pipeline.errors import TEMPLATE_UNSUPPORTED, UserError

TOOL = {"type": "function", "function": {"name": "sky", "parameters": {}}}
TURNS = (Turn("user", "q"), Turn("assistant", "a"))
PLAIN = Conversation(place=Place(file="rows.jsonl", line=1), turns=TURNS)
WITH_TOOLS = Conversation(place=PLAIN.place, turns=TURNS, tools=(TOOL,))


def named(kit: ModuleType, *names: str) -> Any:
    tokenizer = kit.make_tokenizer()
    tokenizer.chat_template = {
        name: f"{name} {'{{ tools | tojson }} ' if name == 'tool_use' else ''}{kit.CHATML}"
        for name in names
    }
    return tokenizer


def test_rows_with_tools_take_the_template_for_them(kit: ModuleType, tmp_path: Path) -> None:
    tokenizer = named(kit, "default", "tool_use", "rag")
    assert settle_template(tokenizer).origin == "model"
    assert render(tokenizer, PLAIN).text.startswith("default <|im_start|>")
    assert render(tokenizer, WITH_TOOLS).text.startswith("tool_use [{")
    assert set(tokenizer.chat_template) == {"default", "tool_use"}
    tokenizer.save_pretrained(tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    for row in (PLAIN, WITH_TOOLS):
        ids = served.apply_chat_template(
            row.messages(), tools=list(row.tools) or None, return_dict=False
        )
        assert served.decode(ids) == render(tokenizer, row).text


def test_a_list_of_templates_as_tokenizer_configs_have_it_is_the_same(kit: ModuleType) -> None:
    listed = [
        {"name": name, "template": text}
        for name, text in named(kit, "default", "tool_use").chat_template.items()
    ]
    tokenizer = type(kit.make_tokenizer())(
        tokenizer_object=kit.make_tokenizer().backend_tokenizer, chat_template=listed
    )
    settle_template(tokenizer)
    assert render(tokenizer, WITH_TOOLS).text.startswith("tool_use [{")


def test_both_get_the_bos_that_the_tokenizer_adds_and_count_in_the_hash(kit: ModuleType) -> None:
    from tests.unit.pipeline.tokenizer_kinds import add_bos

    tokenizer = named(kit, "default", "tool_use")
    add_bos(tokenizer)
    first = settle_template(tokenizer)
    for row in (PLAIN, WITH_TOOLS):
        assert render(tokenizer, row).text.count("<bos>") == 1
    assert settle_template(tokenizer) == first
    tokenizer.chat_template["tool_use"] += " "
    assert settle_template(tokenizer).sha256 != first.sha256


@pytest.mark.parametrize("name", ["default", "tool_use", "rag"])
def test_the_only_one_is_taken_for_every_row(kit: ModuleType, name: str) -> None:
    tokenizer = named(kit, name)
    assert settle_template(tokenizer).origin == "model"
    assert render(tokenizer, PLAIN).text.startswith(name)
    assert isinstance(tokenizer.chat_template, str)


def test_rows_with_tools_are_refused_where_only_the_others_have_a_place(kit: ModuleType) -> None:
    tokenizer = named(kit, "default", "rag")
    settle_template(tokenizer)
    with pytest.raises(UserError, match="no place for tools"):
        render(tokenizer, WITH_TOOLS)


def test_several_without_a_default_are_refused_with_their_names(kit: ModuleType) -> None:
    with pytest.raises(UserError, match=r"several chat templates \(rag, tool_use\)") as caught:
        settle_template(named(kit, "tool_use", "rag"))
    assert caught.value.reason == TEMPLATE_UNSUPPORTED


def test_a_row_whose_tools_the_template_does_not_write_is_refused(kit: ModuleType) -> None:
    tokenizer = kit.make_tokenizer(template="{{ tools | tojson if false }}" + kit.CHATML)
    with pytest.raises(TemplateRefusedRowError, match="loses the definition of sky"):
        render(tokenizer, WITH_TOOLS)
