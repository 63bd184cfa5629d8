"""What the loss mask promises, held for the chat templates of the families people fine-tune."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.pipeline.template_families import (
    FAMILIES,
    KEEPING,
    Family,
    conversation,
    families,
    settled,
    trained_spans,
)
from tests.unit.pipeline.tokenizer_kinds import KINDS, Kind, add_bos
from transformers import AutoTokenizer

from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.rows import Place
from anneal_pipeline.data.template import TemplateRefusedRowError, render, settle_template
from anneal_pipeline.data.tokens import Tokenisation, stop_token_ids
from anneal_pipeline.errors import TEMPLATE_UNSUPPORTED, UserError
from anneal_pipeline.evaluation.questions import Question, question_of_prompt

FAST = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Words of every script, without the marks that templates themselves are made of.
TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="<>[]|{}"),
    min_size=1,
    max_size=30,
).filter(lambda text: text.strip() == text)


@families(FAMILIES)
def test_every_template_but_none_is_a_file(family: Family) -> None:
    assert (family.template() is not None) is (family.name != "none")


@families(FAMILIES)
@FAST
@given(question=TEXTS, answer=TEXTS)
def test_eos_outside_the_loss_the_last_trained_token_of_an_answer_stops(
    made: dict[str, Tokenisation], family: Family, question: str, answer: str
) -> None:
    """Pitfall: end of turn outside the loss: the model never stops."""
    tokenizer = made[family.name].tokenizer
    (span,) = trained_spans(made[family.name], conversation(question, answer))
    stop = family.stop or family.eos
    last = family.closing.strip() or stop  # Phi-3 alone writes an EOS behind the last turn
    assert tokenizer.convert_ids_to_tokens(span[-1]) == last
    assert tokenizer.convert_tokens_to_ids(stop) in span
    assert span[-1] in made[family.name].seen_stops


@families(FAMILIES)
@FAST
@given(question=TEXTS, answer=TEXTS)
def test_mask_all_0_or_all_1_what_is_trained_decodes_to_the_answer(
    made: dict[str, Tokenisation], family: Family, question: str, answer: str
) -> None:
    """Pitfall: no generation tags in the stock template: mask all 0 or all 1."""
    row = conversation(question, answer)
    (span,) = trained_spans(made[family.name], row)
    text = made[family.name].tokenizer.decode(span)
    assert text == family.trained(answer, is_last=True)
    tokens = made[family.name].row(row)
    assert 0 < sum(tokens.is_response) < len(tokens.ids)


@families(KEEPING)
@FAST
@given(texts=st.lists(TEXTS, min_size=4, max_size=4))
def test_every_answer_of_a_conversation_is_trained(
    made: dict[str, Tokenisation], family: Family, texts: list[str]
) -> None:
    first, second = trained_spans(made[family.name], conversation(*texts))
    decode = made[family.name].tokenizer.decode
    assert decode(first) == family.trained(texts[1], is_last=False)
    assert decode(second) == family.trained(texts[3], is_last=True)


@families(KEEPING)
@FAST
@given(texts=st.lists(TEXTS, min_size=4, max_size=4))
def test_template_changes_earlier_turns_fewer_turns_render_to_a_prefix(
    made: dict[str, Tokenisation], family: Family, texts: list[str]
) -> None:
    """Pitfall: the chat template strips `<think>` or changes earlier turns."""
    tokenizer = made[family.name].tokenizer
    whole, part = (render(tokenizer, conversation(*texts[:n])) for n in (4, 2))
    assert whole.text.startswith(part.text.removesuffix(family.closing.strip()))
    assert whole.spans[0].start == part.spans[0].start


def test_template_strips_think_and_is_refused_with_the_reason(
    made: dict[str, Tokenisation],
) -> None:
    """Pitfall: the chat template strips `<think>` or changes earlier turns."""
    row = conversation("one", "<think>so</think>1", "two", "2")
    with pytest.raises(UserError, match="changes earlier text") as caught:
        render(made["qwen-thinking"].tokenizer, row)
    assert caught.value.reason == TEMPLATE_UNSUPPORTED
    assert "row 3 of rows.jsonl" in caught.value.message


def test_a_row_whose_reasoning_the_template_drops_is_refused(made: dict[str, Tokenisation]) -> None:
    with pytest.raises(TemplateRefusedRowError, match="loses text of its message 2"):
        render(made["deepseek"].tokenizer, conversation("one", "<think>so</think>1"))


def test_reasoning_that_the_template_keeps_is_trained(made: dict[str, Tokenisation]) -> None:
    family = next(f for f in FAMILIES if f.name == "qwen-thinking")
    row = conversation("one", "<think>\nso\n</think>\n\n1")
    (span,) = trained_spans(made[family.name], row)
    assert made[family.name].tokenizer.decode(span) == "<think>\nso\n</think>\n\n1<|im_end|>"


@families(FAMILIES)
@pytest.mark.parametrize("adds", [False, True], ids=["as it is", "add_bos_token"])
def test_bos_twice_there_is_exactly_one(family: Family, adds: bool) -> None:
    """Pitfall: BOS twice, by template and tokenizer."""
    tokenizer = family.tokenizer(KINDS[0])
    if adds and family.bos:
        add_bos(tokenizer)
    settle_template(tokenizer)
    tokenisation = Tokenisation(tokenizer, stop_ids=stop_token_ids(tokenizer, None))
    bos = tokenizer.bos_token_id
    wants_one = bos is not None and (adds or "bos_token" in tokenizer.chat_template)
    contents = ["one", "1", "two", "2", "three", "3"] if family.keeps_turns else ["one", "1"]
    ids = list(tokenisation.row(conversation(*contents)).ids)
    # Llama-2's template begins every question as a text of its own, no other does.
    num_texts = 3 if family.name == "llama-2" else 1
    assert ids.count(bos) == (num_texts if wants_one else 0)
    assert (ids[0] == bos) is wants_one
    assert (bos, bos) not in list(pairwise(ids))
    assert question_of_prompt("one").tokens(tokenizer).count(bos) == int(wants_one)


@pytest.mark.parametrize("adds", [False, True], ids=["as it is", "add_bos_token"])
def test_a_text_that_was_rendered_before_gets_no_second_bos_or_eos(adds: bool) -> None:
    family = next(f for f in FAMILIES if f.name == "llama-2")
    tokenizer = family.tokenizer(KINDS[0])
    if adds:
        add_bos(tokenizer)
    tokenisation = Tokenisation(tokenizer, stop_ids=frozenset())
    place = Place(file="rows.jsonl", line=3)
    rendered = Conversation(place=place, text="<bos>[INST] q [/INST] a </s>")
    assert tokenizer.decode(tokenisation.row(rendered).ids) == rendered.text
    plain = Conversation(place=place, text="sky")
    want = "<bos>sky</s>" if adds else "sky</s>"
    assert tokenizer.decode(tokenisation.row(plain).ids) == want


def twenty_prompts(family: Family) -> list[Conversation]:
    """Prompts with their answers: plain ones, with a system message, and after earlier turns."""
    answers = ["It is blue.", "\u4f60\u597d \U0001f600", "a  b\n- c", "na\u00efve"]
    questions = ["What is it?", "\ufb01nd \u00bd", "\U0001f600", "  so?\n", "<b>[x]</b>\t{y}"]
    rows = []
    for number, (question, answer) in enumerate(product(questions, answers)):
        system = "Be brief" if number % 3 == 1 and family.takes_system else None
        earlier = ["one", "1", "two", "2"] if number % 3 == 2 and family.keeps_turns else []
        rows.append(conversation(*earlier, question, answer, system=system))
    return rows


@families(FAMILIES)
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1], KINDS[-1]], ids=lambda kind: kind.name)
def test_the_exported_tokenizer_serves_the_ids_that_were_trained(
    family: Family, kind: Kind, tmp_path: Path
) -> None:
    """Pitfall: the train template is not the serving template.

    Ids are equal for 20 prompts, in training, in our own evaluation and by the export.
    """
    tokenisation = settled(family, kind)
    tokenisation.tokenizer.save_pretrained(tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    rows = twenty_prompts(family)
    assert len({row.content_key() for row in rows}) == 20
    for row in rows:
        trained = tokenisation.row(row)
        assert served.apply_chat_template(row.messages(), return_dict=False) == trained.ids
        prompt = served.apply_chat_template(
            row.messages()[:-1], add_generation_prompt=True, return_dict=False
        )
        assert prompt == Question(messages=row.messages()[:-1]).tokens(tokenisation.tokenizer)
        assert trained.ids[: len(prompt)] == prompt
        answer = trained.is_response[len(prompt) :]
        assert trained.is_response[len(prompt) - 1] == 0
        assert answer[0] == 1


@families(FAMILIES)
def test_the_system_message_is_not_trained(made: dict[str, Tokenisation], family: Family) -> None:
    tokenizer = made[family.name].tokenizer
    row = conversation("q", "answer", system="Be brief")
    if not family.takes_system:
        with pytest.raises(TemplateRefusedRowError, match="is refused by the chat template"):
            render(tokenizer, row)
        return
    (span,) = trained_spans(made[family.name], row)
    assert "Be brief" in render(tokenizer, row).text
    assert "Be brief" not in tokenizer.decode(span)


@families(FAMILIES)
@FAST
@given(question=st.text("ab \n", max_size=8), answer=st.text("ab", min_size=1, max_size=8))
def test_prompt_tokens_no_prefix_bpe_merges_at_the_border_move_nothing(
    made: dict[str, Tokenisation], family: Family, question: str, answer: str
) -> None:
    """Pitfall: prompt tokens are not a prefix of prompt and completion tokens."""
    tokenizer = made[family.name].tokenizer
    (span,) = trained_spans(made[family.name], conversation(f"{question}x", answer))
    text = tokenizer.decode(span, skip_special_tokens=True)
    assert text.removeprefix(family.before).strip() == answer
