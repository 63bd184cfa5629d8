"""Which token ends an answer: one of the model's own, or what the template puts behind answers."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from anneal_pipeline.data.conversation import Conversation, Turn
from anneal_pipeline.data.rows import Place
from anneal_pipeline.data.template import settle_template
from anneal_pipeline.data.tokens import Tokenisation, stop_token_ids
from anneal_pipeline.errors import TEMPLATE_UNSUPPORTED, UserError

SPECIAL = ["<pad>", "<bos>", "</s>", "[TOOL_CALLS]", "<|end|>", "<|call|>"]
PLACE = Place(file="rows.jsonl", line=1)
TOOL = {"type": "function", "function": {"name": "sky", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "sky", "arguments": {"x": 1}}}
CALL_ROW = Conversation(
    place=PLACE,
    turns=(Turn("user", "q"), Turn("assistant", "", {"tool_calls": [CALL]})),
    tools=(TOOL,),
)
ANSWER_ROW = Conversation(place=PLACE, turns=(Turn("user", "q"), Turn("assistant", "blue")))


def tokenisation(kit: ModuleType, *, answer: str, call: str, before: str = "") -> Tokenisation:
    """A template in the manner of Mistral's; what ends a turn is the test's choice."""
    template = (
        before + "{{ tools | tojson if tools }}{% for m in messages %}"
        "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
        "{% elif m.tool_calls %}[TOOL_CALLS] [{{ m.tool_calls[0].function | tojson }}]" + call + ""
        "{% else %}{{ m.content }}" + answer + "{% endif %}{% endfor %}"
    )
    tokenizer: Any = kit.make_tokenizer(
        template=template,
        special=SPECIAL,
        eos_token="</s>",
        extra_special_tokens=["[TOOL_CALLS]"],
    )
    settle_template(tokenizer)
    return Tokenisation(tokenizer, stop_ids=stop_token_ids(tokenizer, None))


def trained(tokens: Tokenisation, row: Conversation) -> str:
    made = tokens.row(row)
    ids = [i for i, trained in zip(made.ids, made.is_response, strict=True) if trained]
    return str(tokens.tokenizer.decode(ids))


def stops(tokens: Tokenisation) -> list[str]:
    return [str(name) for name in tokens.tokenizer.convert_ids_to_tokens(sorted(tokens.seen_stops))]


def test_the_mark_of_a_call_is_no_stop_and_what_stands_behind_it_is_trained(
    kit: ModuleType,
) -> None:
    made = tokenisation(kit, answer="</s>", call="</s>")
    written = '[TOOL_CALLS] [{"name": "sky", "arguments": {"x": 1}}]</s>'
    assert trained(made, CALL_ROW) == written
    assert stops(made) == ["</s>"]


@pytest.mark.parametrize("answer", ["", "</s>"])
def test_a_call_with_its_mark_alone_has_no_stop_and_is_refused(
    kit: ModuleType, answer: str
) -> None:
    made = tokenisation(kit, answer=answer, call="")
    with pytest.raises(UserError, match="never stop") as caught:
        made.row(CALL_ROW)
    assert caught.value.reason == TEMPLATE_UNSUPPORTED
    assert made.seen_stops == set()


def test_what_the_template_puts_behind_answers_is_learnt_where_no_one_names_it(
    kit: ModuleType,
) -> None:
    made = tokenisation(kit, answer="<|end|>\n", call="<|call|>\n")
    assert trained(made, ANSWER_ROW) == "blue<|end|>"
    assert trained(made, CALL_ROW).endswith("}]<|call|>")
    assert stops(made) == ["<|end|>", "<|call|>"]


def test_text_of_the_template_behind_its_stop_is_not_trained(kit: ModuleType) -> None:
    made = tokenisation(kit, answer="</s> so it is ", call="")
    assert trained(made, ANSWER_ROW) == "blue</s>"


def test_a_special_token_that_the_answer_ends_with_is_no_stop(kit: ModuleType) -> None:
    row = Conversation(
        place=PLACE, turns=(Turn("user", "q"), Turn("assistant", "blue [TOOL_CALLS]"))
    )
    with pytest.raises(UserError, match="never stop"):
        tokenisation(kit, answer="", call="").row(row)


def test_a_template_that_takes_no_plain_question_is_still_learnt_from_its_rows(
    kit: ModuleType,
) -> None:
    refuses = "{% if messages[0].content == 'a' %}{{ raise_exception('not this') }}{% endif %}"
    made = tokenisation(kit, answer="<|end|>\n", call="", before=refuses)
    assert trained(made, ANSWER_ROW) == "blue<|end|>"
