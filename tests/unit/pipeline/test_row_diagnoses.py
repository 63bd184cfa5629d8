"""Rows that are long for no good reason, and tokenizers that are not the model's."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from anneal_pipeline.data.length_diagnoses import of_lengths, of_template
from anneal_pipeline.data.prepared import ROWS_NAME, PreparedSplit
from anneal_pipeline.training.diagnoses.vocabulary import of_vocabulary


def split_of(lengths: list[int]) -> PreparedSplit:
    return PreparedSplit(
        ids=torch.zeros(sum(lengths), dtype=torch.int32),
        is_response=torch.ones(sum(lengths), dtype=torch.uint8),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
    )


def of(lengths: list[int], *, is_packed: bool = False, overlength: str = "drop") -> list[Any]:
    return list(of_lengths(split_of(lengths), is_packed=is_packed, overlength=overlength))


def test_a_few_rows_far_beyond_the_others_are_told_with_the_length_that_leaves_them_out() -> None:
    [found] = of([80] * 90 + [150] * 8 + [900, 1800])
    assert found.row == "S1"
    assert str(found) == (
        "The longest training row has 1800 tokens, where half have at most 80 and 95 % at most "
        "150: 2 rows have more than 320 tokens, and the memory of a step is planned for the "
        "longest; set training.sequenceLength to 320, which drops them"
    )
    assert of([80] * 100 + [300]) == [], "no row is long"
    assert of([300] * 90 + [1000] * 10) == [], "many rows are"
    assert of([80] * 98 + [1800], is_packed=True) == [], "sequences are filled anyway"


def test_the_fix_goes_by_what_the_job_does_with_rows_that_are_too_long() -> None:
    lengths = [80] * 98 + [1800]
    [fail], [cut] = of(lengths, overlength="fail"), of(lengths, overlength="truncate")
    assert fail.fix.endswith("to 192 and dataset.filters.overlength to drop, which drops it")
    assert cut.fix.endswith("to 192, which truncates it")


def template_of(kit: ModuleType, folder: Path, *, added: int, words: int) -> list[Any]:
    """Of three rows whose template adds so many tokens to a question of so many words."""
    tokenizer = kit.make_tokenizer()
    row = kit.chat(" blue" * words, "It is blue.")
    texts = [message["content"] for message in row["messages"]]
    own = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    kit.write_rows(folder / ROWS_NAME, [row] * 3)
    return list(of_template(split_of([own + added] * 3), folder, tokenizer=tokenizer))


def test_a_template_with_much_text_of_its_own_is_told(kit: ModuleType, tmp_path: Path) -> None:
    [found] = template_of(kit, tmp_path, added=300, words=5)
    assert found.key == "S1.template"
    assert "adds 300 tokens to a row, " in found.symptom
    assert template_of(kit, tmp_path, added=60, words=5) == [], "short rows, a usual template"
    assert template_of(kit, tmp_path, added=300, words=500) == [], "a small share"


def test_plain_text_has_no_template_to_tell_of(kit: ModuleType, tmp_path: Path) -> None:
    kit.write_rows(tmp_path / ROWS_NAME, [{"text": "blue"}])
    assert list(of_template(split_of([600]), tmp_path, tokenizer=kit.make_tokenizer())) == []


def vocabulary_of(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, embeddings: int | None = None
) -> list[Any]:
    rows = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    return list(of_vocabulary(tokenizer, rows=rows, num_embeddings=embeddings or len(tokenizer)))


def test_a_tokenizer_with_far_fewer_tokens_than_the_model_is_told(kit: ModuleType) -> None:
    tokenizer = kit.make_tokenizer()
    [found] = vocabulary_of(tokenizer, ["blue"], embeddings=2 * len(tokenizer))
    assert found.row == "S4"
    assert f"knows {len(tokenizer)} tokens, the model has embeddings for {2 * len(tokenizer)}" in (
        found.symptom
    )
    assert vocabulary_of(tokenizer, ["blue"], embeddings=int(1.03 * len(tokenizer))) == []


def test_texts_that_do_not_come_back_from_the_tokenizer_are_told(kit: ModuleType) -> None:
    """A tokenizer that was trained without all bytes, and drops what it never saw."""
    whole, damaged = kit.make_tokenizer(), kit.make_tokenizer()
    texts = ["Is it blue?", "Größe und Maß, 42", "\u65e5\u672c"]
    assert vocabulary_of(whole, texts) == []
    damaged.backend_tokenizer.normalizer = _without_digits()
    [found] = vocabulary_of(damaged, ["What is 42?", *texts])
    assert found.key == "S4.lost"
    assert "2 of 4 texts" in found.symptom
    assert '"What is 42?", which becomes "What is ?"' in found.symptom


def test_one_text_that_is_lost_tells_nothing_however_often_it_stands(kit: ModuleType) -> None:
    tokenizer = kit.make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = _without_digits()
    assert vocabulary_of(tokenizer, ["What is 42?", "Is it blue?"]) == [], "one of few"
    assert vocabulary_of(tokenizer, ["Be 42.", "Is it blue?", "Be 42.", "It is."]) == []


def test_calls_of_tools_are_texts_of_a_row_too(kit: ModuleType) -> None:
    tokenizer = kit.make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = _without_digits()
    calls = [{"function": {"name": "add", "arguments": {"a": number}}} for number in (4, 5)]
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]} for call in calls]
    found = of_vocabulary(tokenizer, rows=[{"messages": messages}], num_embeddings=len(tokenizer))
    assert [one.key for one in found] == ["S4.lost"]


def _without_digits() -> Any:
    from tokenizers import Regex, normalizers

    return normalizers.Replace(Regex("[0-9]"), "")


@pytest.mark.parametrize("row", [{"text": ""}, {"messages": [{"role": "user", "content": ""}]}])
def test_rows_without_letters_tell_nothing(kit: ModuleType, row: dict[str, Any]) -> None:
    tokenizer = kit.make_tokenizer()
    assert list(of_vocabulary(tokenizer, rows=[row], num_embeddings=len(tokenizer))) == []
