"""What the loss mask promises, held for the templates people use."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anneal_pipeline.data.conversation import Conversation, Turn
from anneal_pipeline.data.rows import Place
from anneal_pipeline.data.template import (
    PLAIN_TEMPLATE,
    TemplateRefusedRowError,
    render,
    settle_template,
)
from anneal_pipeline.data.tokens import Tokenisation, stop_token_ids
from anneal_pipeline.errors import TEMPLATE_UNSUPPORTED, UserError

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] "
    "| trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] "
    "+ eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Drops the reasoning of earlier turns, as several reasoning models do.
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and not loop.last %}"
    "{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEMPLATES: dict[str, dict[str, Any]] = {
    "ChatML": {
        "template": CHATML,
        "special": ["<pad>", "<|im_start|>", "<|im_end|>"],
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
    },
    "Llama-3": {
        "template": LLAMA3,
        "special": ["<pad>", "<bos>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "eos_token": "<|eot_id|>",
    },
    "Zephyr": {"template": ZEPHYR, "special": ["<pad>", "<bos>", "</s>"], "eos_token": "</s>"},
    "Mistral": {
        "template": MISTRAL,
        "special": ["<pad>", "<bos>", "</s>", "[INST]", "[/INST]"],
        "eos_token": "</s>",
    },
    # Its answers end in a token that is not the tokenizer's EOS.
    "Gemma": {
        "template": GEMMA,
        "special": ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        "eos_token": "<eos>",
        "extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
    },
    "none": {"template": None, "special": ["<pad>", "<bos>", "</s>"], "eos_token": "</s>"},
}

ANSWERS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="<>[]|"),
    min_size=1,
    max_size=40,
).filter(lambda text: text.strip() == text and text != "")


def conversation(*contents: str) -> Conversation:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], content) for i, content in enumerate(contents))
    return Conversation(place=Place(file="rows.jsonl", line=1), turns=turns)


@pytest.fixture(scope="module", params=list(TEMPLATES))
def tokenizer(request: pytest.FixtureRequest, kit: ModuleType) -> Any:
    made = kit.make_tokenizer(**TEMPLATES[request.param])
    settle_template(made)
    return made


FAST = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FAST
@given(texts=st.lists(ANSWERS, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0))
def test_the_mask_holds_the_answers_with_their_stop_and_nothing_else(
    tokenizer: Any, texts: list[str]
) -> None:
    stops = stop_token_ids(tokenizer, None)
    tokenisation = Tokenisation(tokenizer, stop_ids=stops)
    row = tokenisation.row(conversation(*texts))
    spans: list[list[int]] = []
    previous = 0
    for token, is_response in zip(row.ids, row.is_response, strict=True):
        if is_response and not previous:
            spans.append([])
        if is_response:
            spans[-1].append(token)
        previous = is_response
    assert len(spans) == len(texts) // 2
    for span, answer in zip(spans, texts[1::2], strict=True):
        assert span[-1] in tokenisation.seen_stops
        assert tokenizer.decode(span[:-1]).strip() == answer
    assert 0 < sum(row.is_response) < len(row.ids)


def test_there_is_exactly_one_bos_where_the_model_has_one(tokenizer: Any) -> None:
    row = Tokenisation(tokenizer, stop_ids=stop_token_ids(tokenizer, None)).row(
        conversation("What is it?", "It is blue.")
    )
    starts = [token for token in row.ids[:2] if token == tokenizer.bos_token_id]
    wants_one = tokenizer.bos_token in tokenizer.chat_template or "bos_token" in (
        tokenizer.chat_template
    )
    assert len(starts) == int(wants_one)


@FAST
@given(texts=st.lists(ANSWERS, min_size=4, max_size=4))
def test_fewer_turns_render_to_a_prefix_of_more(tokenizer: Any, texts: list[str]) -> None:
    whole = render(tokenizer, conversation(*texts))
    part = render(tokenizer, conversation(*texts[:2]))
    assert whole.text.startswith(part.text)
    assert whole.spans[0] == part.spans[0]


def test_a_tokenizer_that_adds_bos_gets_it_into_its_template_once(kit: ModuleType) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = kit.make_tokenizer(**TEMPLATES["Zephyr"])
    bos = tokenizer.convert_tokens_to_ids("<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    settle_template(tokenizer)
    row = Tokenisation(tokenizer, stop_ids=stop_token_ids(tokenizer, None)).row(
        conversation("q", "a", "q", "a")
    )
    assert list(row.ids).count(bos) == 1
    assert row.ids[0] == bos
    # A second settling, as a later attempt does it, must not add another.
    assert settle_template(tokenizer).sha256 == settle_template(tokenizer).sha256
    assert (
        list(Tokenisation(tokenizer, stop_ids=frozenset()).row(conversation("q", "a")).ids).count(
            bos
        )
        == 1
    )


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_place(kit: ModuleType) -> None:
    tokenizer = kit.make_tokenizer(template=FORGETFUL)
    row = conversation("one", "<think>so</think>1", "two", "<think>so</think>2")
    with pytest.raises(UserError, match="changes earlier text") as caught:
        render(tokenizer, row)
    assert caught.value.reason == TEMPLATE_UNSUPPORTED
    assert "row 1 of rows.jsonl" in caught.value.message


def test_a_template_without_a_stop_is_refused(kit: ModuleType) -> None:
    tokenizer = kit.make_tokenizer(
        template="{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(UserError, match="never stop") as caught:
        Tokenisation(tokenizer, stop_ids=stop_token_ids(tokenizer, None)).row(
            conversation("q", "a")
        )
    assert caught.value.reason == TEMPLATE_UNSUPPORTED


def test_what_the_template_itself_refuses_is_the_row_s_fault(kit: ModuleType) -> None:
    tokenizer = kit.make_tokenizer(**TEMPLATES["Gemma"])
    row = Conversation(
        place=Place(file="rows.jsonl", line=1),
        turns=(Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a")),
    )
    with pytest.raises(TemplateRefusedRowError, match="System role not supported"):
        render(tokenizer, row)


def test_models_without_a_template_get_the_plain_one(kit: ModuleType) -> None:
    tokenizer = kit.make_tokenizer(**TEMPLATES["none"])
    choice = settle_template(tokenizer)
    assert choice.origin == "plain"
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    text = render(tokenizer, conversation("Add 1 and 2", "3")).text
    assert text == "### Instruction:\nAdd 1 and 2\n\n### Response:\n3</s>\n\n"


def test_the_plain_template_takes_no_tool_turn_for_an_answer(kit: ModuleType) -> None:
    tokenizer = kit.make_tokenizer(template=None)
    settle_template(tokenizer)
    turns = [("user", "Is it wet?"), ("tool", "rain"), ("assistant", "It is.")]
    asked = Conversation(
        place=Place(file="rows.jsonl", line=1), turns=tuple(Turn(*turn) for turn in turns)
    )
    with pytest.raises(TemplateRefusedRowError, match="has no place for the role tool"):
        render(tokenizer, asked)
