"""Rows of one conversation, joined by `dataset.columns.conversationId`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.rows import BadRow
from anneal_pipeline.data.source import Source
from anneal_pipeline.errors import UserError


def read(
    folder: Path, lines: list[Any], *, labels: tuple[str, ...] = (), **columns: str
) -> list[Conversation | BadRow]:
    path = folder / "rows.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    config = DatasetConfig.parse(
        {"uri": "rows.jsonl", "columns": {"conversationId": "chat", **columns}}
    )
    source = Source(config, DatasetFiles(train=(path,)), labels=labels)
    return [row for _, row in source.rows()]


def exchange(chat: str | None, question: str, **more: Any) -> dict[str, Any]:
    return {"chat": chat, "instruction": question, "output": f"{question}!", **more}


def said(row: Conversation | BadRow) -> list[str]:
    assert isinstance(row, Conversation)
    return [turn.content for turn in row.turns]


def test_rows_of_one_value_are_one_conversation_in_their_order(tmp_path: Path) -> None:
    rows = read(
        tmp_path, [exchange("a", "1"), exchange("a", "2"), exchange("b", "3"), exchange("b", "4")]
    )
    assert [said(row) for row in rows] == [["1", "1!", "2", "2!"], ["3", "3!", "4", "4!"]]
    assert [row.place.line for row in rows] == [1, 3]


def test_rows_of_single_messages_are_joined_too(tmp_path: Path) -> None:
    turns = [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
    lines = [{"chat": 7, "messages": [{"role": role, "content": text}]} for role, text in turns]
    assert [said(row) for row in read(tmp_path, lines)] == [["1", "2", "3", "4"]]


def test_rows_without_a_value_stand_alone(tmp_path: Path) -> None:
    rows = read(tmp_path, [exchange(None, "1"), exchange(None, "2")])
    assert [said(row) for row in rows] == [["1", "1!"], ["2", "2!"]]


def test_the_system_message_of_every_row_is_said_once(tmp_path: Path) -> None:
    lines = [exchange("a", question, system="Be brief") for question in ("1", "2")]
    (row,) = read(tmp_path, lines)
    assert said(row) == ["Be brief", "1", "1!", "2", "2!"]


def test_the_split_takes_the_first_value_of_a_conversation(tmp_path: Path) -> None:
    lines = [exchange("a", "1"), exchange("a", "2", user="ada"), exchange("a", "3", user="bob")]
    (row,) = read(tmp_path, lines, labels=("user",))
    assert isinstance(row, Conversation)
    assert row.labels == {"user": "ada"}


def test_a_conversation_that_goes_on_further_down_is_refused_with_the_place(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"Row 3 of rows\.jsonl goes on .* a \(chat\)") as caught:
        read(tmp_path, [exchange("a", "1"), exchange("b", "2"), exchange("a", "3")])
    assert caught.value.reason == "DatasetRowsInvalid"


def entries(rows: list[Conversation | BadRow]) -> list[tuple[int, str, str]]:
    bad = [row for row in rows if isinstance(row, BadRow)]
    return [(part.place.line, part.reason, part.detail) for row in bad for part in row.rows()]


def test_a_bad_row_takes_its_conversation_with_it(tmp_path: Path) -> None:
    no_answer = {"chat": "a", "instruction": "2", "output": " "}
    lines = [exchange("a", "1"), no_answer, exchange("a", "2"), exchange("b", "3")]
    rows = read(tmp_path, lines)
    cause = "has an assistant message without text"
    assert entries(rows) == [
        (1, "broken-conversation", f"is of a conversation whose row 2 {cause}"),
        (2, "empty-response", cause),
        (3, "broken-conversation", f"is of a conversation whose row 2 {cause}"),
    ]
    assert said(rows[-1]) == ["3", "3!"]


def test_the_row_with_damaged_text_is_the_one_that_is_named(tmp_path: Path) -> None:
    lines = [exchange("a", "1"), exchange("a", "2\ufffd"), exchange("a", "3")]
    assert [entry[:2] for entry in entries(read(tmp_path, lines))] == [
        (1, "broken-conversation"),
        (2, "damaged-text"),
        (3, "broken-conversation"),
    ]


def test_what_is_wrong_with_the_whole_is_said_of_each_row(tmp_path: Path) -> None:
    lines = [
        {"chat": "a", "messages": [{"role": "user", "content": text}]} for text in ("one", "two")
    ]
    rows = read(tmp_path, lines)
    detail = "is of the conversation in rows 1 to 2, which has no assistant message"
    assert entries(rows) == [(n, "no-assistant-message", detail) for n in (1, 2)]
    previews = [part.preview for row in rows if isinstance(row, BadRow) for part in row.rows()]
    assert ["one" in previews[0], "two" in previews[1]] == [True, True]


def test_an_unreadable_line_within_a_conversation_breaks_it(tmp_path: Path) -> None:
    lines = [
        exchange("a", "1"),
        "{broken",
        exchange("a", "2"),
        exchange("b", "3"),
        "{",
        exchange("c", "4"),
    ]
    rows = read(tmp_path, lines)
    assert [entry[:2] for entry in entries(rows)] == [
        (2, "invalid-json"),
        (1, "broken-conversation"),
        (3, "broken-conversation"),
        (5, "invalid-json"),
    ]
    assert "whose row 2 is not valid JSON" in entries(rows)[1][2]
    assert [said(row) for row in rows if isinstance(row, Conversation)] == [
        ["3", "3!"],
        ["4", "4!"],
    ]


def test_a_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="conversationId names chat, which none of the first"):
        read(tmp_path, [{"instruction": "1", "output": "2"}])


def test_texts_have_no_conversations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="conversationId has no effect on rows of the layout text"):
        read(tmp_path, [{"chat": "a", "text": "once"}])
