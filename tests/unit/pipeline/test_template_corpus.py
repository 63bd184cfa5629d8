"""What the loss mask promises, held for the chat templates of the families people fine-tune."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from anneal_pipeline.data.conversation import Conversation, Turn
from anneal_pipeline.data.rows import Place
from anneal_pipeline.data.template import TemplateRefusedRowError, render, settle_template
from anneal_pipeline.data.tokens import Tokenisation, stop_token_ids
from anneal_pipeline.errors import TEMPLATE_UNSUPPORTED, UserError

FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Family:
    name: str
    special: tuple[str, ...]
    eos: str
    bos: str = "<bos>"
    stop: str | None = None
    """What ends an answer, where it is not EOS; named in the model's generation config."""
    takes_tools: bool = False
    keeps_turns: bool = True
    """False: earlier answers are rendered otherwise once the conversation goes on."""
    takes_system: bool = True
    thought: str = ""
    """What the template puts before an answer without reasoning."""


FAMILIES = [
    Family(name="chatml", special=("<|im_start|>", "<|im_end|>"), eos="<|im_end|>"),
    Family(name="llama-2", special=("<bos>", "</s>"), eos="</s>"),
    Family(
        name="llama-3",
        special=("<bos>", "<eos>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        eos="<eos>",
        stop="<|eot_id|>",
        takes_tools=True,
    ),
    Family(
        name="mistral",
        special=("<bos>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"),
        eos="</s>",
        takes_tools=True,
        takes_system=False,
    ),
    Family(
        name="gemma",
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        stop="<end_of_turn>",
        takes_system=False,
    ),
    Family(
        name="gemma-tools",
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_function_call>"),
        eos="<eos>",
        stop="<end_of_turn>",
        takes_tools=True,
    ),
    Family(
        name="phi-3",
        special=("<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>"),
        eos="<|endoftext|>",
        stop="<|end|>",
    ),
    Family(
        name="qwen-thinking",
        special=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        takes_tools=True,
        keeps_turns=False,
        thought="<think>\n\n</think>\n\n",
    ),
    Family(name="zephyr", special=("<bos>", "</s>"), eos="</s>"),
    Family(name="deepseek", special=("<bos>", "</s>", "<User>", "<Assistant>"), eos="</s>"),
    Family(name="none", special=("<bos>", "</s>"), eos="</s>"),
]
KEEPING = [family for family in FAMILIES if family.keeps_turns]
WITH_TOOLS = [family for family in FAMILIES if family.takes_tools]

FAST = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Words of every script, without the marks that templates themselves are made of.
TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="<>[]|{}"),
    min_size=1,
    max_size=30,
).filter(lambda text: text.strip() == text)


@pytest.fixture(scope="module")
def made(kit: ModuleType) -> dict[str, Any]:
    """Tokenizers by family, their templates settled."""
    tokenizers = {}
    for family in FAMILIES:
        path = FOLDER / f"{family.name}.jinja"
        tokenizer = kit.make_tokenizer(
            template=path.read_text(encoding="utf-8") if path.is_file() else None,
            special=["<pad>", *family.special],
            eos_token=family.eos,
            bos_token=family.bos if family.bos in family.special else family.eos,
        )
        settle_template(tokenizer)
        tokenizers[family.name] = tokenizer
    return tokenizers


def conversation(*contents: str, system: str | None = None) -> Conversation:
    turns = [Turn(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    if system is not None:
        turns.insert(0, Turn("system", system))
    return Conversation(place=Place(file="rows.jsonl", line=3), turns=tuple(turns))


def tokenisation_of(family: Family, tokenizer: Any) -> Tokenisation:
    stop = None if family.stop is None else tokenizer.convert_tokens_to_ids(family.stop)
    return Tokenisation(tokenizer, stop_ids=stop_token_ids(tokenizer, stop))


def trained_spans(family: Family, tokenizer: Any, row: Conversation) -> list[list[int]]:
    """The runs of trained tokens of a row."""
    tokens = tokenisation_of(family, tokenizer).row(row)
    spans: list[list[int]] = []
    previous = 0
    for token, is_response in zip(tokens.ids, tokens.is_response, strict=True):
        if is_response and not previous:
            spans.append([])
        if is_response:
            spans[-1].append(token)
        previous = is_response
    return spans


def families(among: list[Family]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in among])


@families(FAMILIES)
def test_every_template_but_none_is_a_file(family: Family) -> None:
    assert (FOLDER / f"{family.name}.jinja").is_file() is (family.name != "none")


@families(FAMILIES)
@FAST
@given(question=TEXTS, answer=TEXTS)
def test_eos_outside_the_loss_the_last_trained_token_of_an_answer_stops(
    made: dict[str, Any], family: Family, question: str, answer: str
) -> None:
    """Pitfall: end of turn outside the loss: the model never stops."""
    tokenizer = made[family.name]
    (span,) = trained_spans(family, tokenizer, conversation(question, answer))
    stop = tokenizer.convert_tokens_to_ids(family.stop or family.eos)
    assert span[-1] == stop or tokenizer.decode(span[-1:]) == family.eos
    assert stop in span


@families(FAMILIES)
@FAST
@given(question=TEXTS, answer=TEXTS)
def test_mask_all_0_or_all_1_what_is_trained_decodes_to_the_answer(
    made: dict[str, Any], family: Family, question: str, answer: str
) -> None:
    """Pitfall: no generation tags in the stock template: mask all 0 or all 1."""
    tokenizer = made[family.name]
    row = conversation(question, answer)
    (span,) = trained_spans(family, tokenizer, row)
    text = tokenizer.decode(span, skip_special_tokens=True)
    assert text.removeprefix(family.thought).strip() == answer
    tokens = tokenisation_of(family, tokenizer).row(row)
    assert 0 < sum(tokens.is_response) < len(tokens.ids)


@families(KEEPING)
@FAST
@given(texts=st.lists(TEXTS, min_size=4, max_size=4))
def test_every_answer_of_a_conversation_is_trained(
    made: dict[str, Any], family: Family, texts: list[str]
) -> None:
    tokenizer = made[family.name]
    spans = trained_spans(family, tokenizer, conversation(*texts))
    stops = {family.stop or family.eos, family.eos}
    decoded = [tokenizer.decode(span, skip_special_tokens=True).strip() for span in spans]
    assert decoded == texts[1::2]
    assert all(tokenizer.decode(span[-1:]) in stops for span in spans)


@families(KEEPING)
@FAST
@given(texts=st.lists(TEXTS, min_size=4, max_size=4))
def test_template_changes_earlier_turns_fewer_turns_render_to_a_prefix(
    made: dict[str, Any], family: Family, texts: list[str]
) -> None:
    """Pitfall: the chat template strips `<think>` or changes earlier turns."""
    tokenizer = made[family.name]
    whole, part = (render(tokenizer, conversation(*texts[:n])) for n in (4, 2))
    closed = part.text.removesuffix(family.eos) if family.name == "phi-3" else part.text
    assert whole.text.startswith(closed)
    assert whole.spans[0].start == part.spans[0].start


def test_template_strips_think_and_is_refused_with_the_reason(made: dict[str, Any]) -> None:
    """Pitfall: the chat template strips `<think>` or changes earlier turns."""
    row = conversation("one", "<think>so</think>1", "two", "2")
    with pytest.raises(UserError, match="changes earlier text") as caught:
        render(made["qwen-thinking"], row)
    assert caught.value.reason == TEMPLATE_UNSUPPORTED
    assert "row 3 of rows.jsonl" in caught.value.message


def test_a_row_whose_reasoning_the_template_drops_is_refused(made: dict[str, Any]) -> None:
    with pytest.raises(TemplateRefusedRowError, match="loses text of its message 2"):
        render(made["deepseek"], conversation("one", "<think>so</think>1"))


def test_reasoning_that_the_template_keeps_is_trained(made: dict[str, Any]) -> None:
    family = next(f for f in FAMILIES if f.name == "qwen-thinking")
    row = conversation("one", "<think>\nso\n</think>\n\n1")
    (span,) = trained_spans(family, made[family.name], row)
    assert made[family.name].decode(span) == "<think>\nso\n</think>\n\n1<|im_end|>"


@families(FAMILIES)
def test_bos_twice_there_is_exactly_one(made: dict[str, Any], family: Family) -> None:
    """Pitfall: BOS twice, by template and tokenizer."""
    tokenizer = made[family.name]
    tokens = tokenisation_of(family, tokenizer).row(conversation("What is it?", "It is blue."))
    wants_one = "bos_token" in tokenizer.chat_template
    assert list(tokens.ids).count(tokenizer.convert_tokens_to_ids(family.bos)) == int(wants_one)
    assert not wants_one or tokens.ids[0] == tokenizer.bos_token_id


@families(FAMILIES)
def test_the_exported_tokenizer_serves_the_ids_that_were_trained(
    made: dict[str, Any], family: Family, tmp_path: Path
) -> None:
    """Pitfall: the train template is not the serving template."""
    tokenizer = made[family.name]
    row = conversation("What is it?", "It is blue.")
    trained = tokenisation_of(family, tokenizer).row(row)
    tokenizer.save_pretrained(tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    assert served.apply_chat_template(row.messages(), return_dict=False) == trained.ids
    prompt = served.apply_chat_template(
        row.messages()[:1], add_generation_prompt=True, return_dict=False
    )
    assert trained.ids[: len(prompt)] == prompt
    assert sum(trained.is_response[: len(prompt)]) == 0


@families(FAMILIES)
def test_the_system_message_is_not_trained(made: dict[str, Any], family: Family) -> None:
    tokenizer = made[family.name]
    row = conversation("q", "answer", system="Be brief")
    if not family.takes_system:
        with pytest.raises(TemplateRefusedRowError, match="is refused by the chat template"):
            render(tokenizer, row)
        return
    (span,) = trained_spans(family, tokenizer, row)
    assert "Be brief" in render(tokenizer, row).text
    assert "Be brief" not in tokenizer.decode(span)


@families(FAMILIES)
@FAST
@given(question=st.text("ab \n", max_size=8), answer=st.text("ab", min_size=1, max_size=8))
def test_prompt_tokens_no_prefix_bpe_merges_at_the_border_move_nothing(
    made: dict[str, Any], family: Family, question: str, answer: str
) -> None:
    """Pitfall: prompt tokens are not a prefix of prompt and completion tokens."""
    tokenizer = made[family.name]
    (span,) = trained_spans(family, tokenizer, conversation(f"{question}x", answer))
    text = tokenizer.decode(span, skip_special_tokens=True)
    assert text.removeprefix(family.thought).strip() == answer


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


@families(WITH_TOOLS)
def test_tool_arguments_double_encoded_calls_come_back_as_they_were(
    made: dict[str, Any], family: Family
) -> None:
    """Pitfall: tool arguments double-encoded."""
    tokenizer = made[family.name]
    call, answer = trained_spans(family, tokenizer, TOOL_ROW)
    text = tokenizer.decode(call)
    found = json.loads(re.sub(r"^\[|\]$", "", text[text.index("{") : text.rindex("}") + 1]))
    assert found["name"] == "weather"
    assert found.get("arguments", found.get("parameters")) == ARGUMENTS
    assert "null" not in text
    assert "Sunny." in tokenizer.decode(answer)


@families(WITH_TOOLS)
def test_tool_results_and_definitions_are_told_but_not_trained(
    made: dict[str, Any], family: Family
) -> None:
    tokenizer = made[family.name]
    text = render(tokenizer, TOOL_ROW).text
    spans = trained_spans(family, tokenizer, TOOL_ROW)
    trained = "".join(tokenizer.decode(span) for span in spans)
    for told in ("sunny intervals", '"parameters"', '"type"'):
        assert told in text
    assert "sunny intervals" not in trained
    assert '"type"' not in trained


@families([family for family in FAMILIES if not family.takes_tools])
def test_a_template_without_tools_refuses_rows_that_define_them(
    made: dict[str, Any], family: Family
) -> None:
    with pytest.raises(UserError, match="no place for tools") as caught:
        render(made[family.name], TOOL_ROW)
    assert caught.value.reason == TEMPLATE_UNSUPPORTED


def test_a_call_that_the_template_drops_is_refused(made: dict[str, Any]) -> None:
    row = Conversation(place=TOOL_ROW.place, turns=TOOL_ROW.turns[:2])
    with pytest.raises(TemplateRefusedRowError, match="writes no tool calls"):
        render(made["chatml"], row)
