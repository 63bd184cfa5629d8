"""Rows that cannot be trained on: in quarantine with place and reason, or the end of the job."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.unit.pipeline.bench import Bench

from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.errors import UserError
from anneal_pipeline.training.row_places import row_places

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a tale"}]}

NO_ANSWER = {"messages": [{"role": "user", "content": "hello?"}]}
NO_OUTPUT = {"instruction": "hello?", "output": " "}


def test_every_dropped_row_is_in_quarantine_with_its_place(bench: Bench) -> None:
    rows = bench.kit.sums(20)
    data = bench.prepare([*rows, NO_ANSWER, rows[3], bench.kit.chat("x" * 400, "y")])
    assert [(row["line"], row["reason"]) for row in bench.quarantine()] == [
        (21, "no-assistant-message"),
        (22, "duplicate"),
        (23, "too-long"),
    ]
    assert all(row["file"] == "support.jsonl" and row["preview"] for row in bench.quarantine())
    assert data.report.dropped == {"no-assistant-message": 1, "duplicate": 1, "too-long": 1}
    assert data.report.num_rows_read == 23
    assert sum(split.num_rows for split in data.report.splits.values()) == 20


def test_rows_of_files_with_the_same_name_have_places_of_their_own(bench: Bench) -> None:
    rows = bench.kit.sums(12)
    paths = []
    for name, part in (("a", [*rows[:6], NO_ANSWER]), ("b", [*rows[6:], NO_ANSWER, rows[1]])):
        (bench.root / name).mkdir()
        paths.append(bench.kit.write_rows(bench.root / name / "part.jsonl", part))
    data = bench.prepare_files(DatasetFiles(train=tuple(paths)))
    assert [(row["file"], row["line"], row["detail"]) for row in bench.quarantine()] == [
        ("a/part.jsonl", 7, "has no assistant message"),
        ("b/part.jsonl", 7, "has no assistant message"),
        ("b/part.jsonl", 8, "repeats row 2 of a/part.jsonl"),
    ]
    places = [
        place
        for name, split in data.splits.items()
        for place in row_places(data.folder / name, rows=range(len(split)))
    ]
    assert sorted(places) == [f"{name}/part.jsonl:{line}" for name in "ab" for line in range(1, 7)]


def test_too_many_dropped_rows_fail_with_the_first_of_them(bench: Bench) -> None:
    with pytest.raises(UserError) as caught:
        bench.prepare([*bench.kit.sums(3), *[NO_ANSWER] * 5])
    assert caught.value.reason == "DatasetRowsInvalid"
    assert caught.value.message.startswith(
        "Row 4 of support.jsonl has no assistant message; 5 of 8 rows are like it"
    )
    assert caught.value.message.endswith("set dataset.columns or fix the file")


@pytest.mark.parametrize(
    ("content", "reason", "place"),
    [
        pytest.param("", "DatasetEmpty", "at rows.jsonl has", id="an empty file"),
        pytest.param("\n\n", "DatasetEmpty", "at rows.jsonl has", id="empty lines"),
        pytest.param("not json\n", "DatasetRowsInvalid", "support.jsonl", id="no JSON at all"),
    ],
)
def test_a_file_without_rows_is_the_users_mistake(
    bench: Bench, content: str, reason: str, place: str
) -> None:
    path = bench.root / "support.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(place)) as caught:
        bench.prepare_files(DatasetFiles(train=(path,)))
    assert caught.value.reason == reason


def test_a_missing_file_is_named(bench: Bench) -> None:
    with pytest.raises(UserError, match=r"no\.jsonl") as caught:
        bench.prepare_files(DatasetFiles(train=(bench.root / "no.jsonl",)))
    assert caught.value.reason == "DatasetNotFound"


def chats(count: int, **more: Any) -> list[dict[str, Any]]:
    """Conversations of three rows each."""
    return [
        {"chat": n, "instruction": f"Ask {n} {k}", "output": f"Told {n} {k}.", **more}
        for n in range(count)
        for k in range(3)
    ]


JOINED = {"columns": {"conversationId": "chat"}, "split": {"train": 1.0, "validation": 0.0}}


def test_every_row_of_a_dropped_conversation_is_in_quarantine(bench: Bench) -> None:
    rows = chats(9)
    rows[4]["output"] = ""
    repeated = [{**row, "chat": "again"} for row in rows[6:9]]
    longer = [{"chat": "long", "instruction": "x" * 200, "output": "y"} for _ in range(2)]
    data = bench.prepare([*rows, *repeated, *longer], dataset=JOINED)
    assert [(row["line"], row["reason"]) for row in bench.quarantine()] == [
        (4, "broken-conversation"),
        (5, "empty-response"),
        (6, "broken-conversation"),
        *[(line, "duplicate") for line in (28, 29, 30)],
        *[(line, "too-long") for line in (31, 32)],
    ]
    assert all(row["file"] == "support.jsonl" and row["preview"] for row in bench.quarantine())
    assert bench.quarantine()[3]["detail"] == (
        "is of the conversation in rows 28 to 30, which repeats row 7 of support.jsonl"
    )
    report = data.report
    assert (report.num_rows_read, report.num_conversations_read) == (32, 11)
    assert sum(report.dropped.values()) == len(bench.quarantine()) == 8
    assert len(data.train) == 8
    assert report.amount_read() == "32 rows in 11 conversations"


@pytest.mark.parametrize(
    ("limit", "fails"), [pytest.param(0.5, False, id="at"), pytest.param(0.49, True, id="over")]
)
def test_the_share_of_dropped_rows_counts_rows_and_not_conversations(
    bench: Bench, *, limit: float, fails: bool
) -> None:
    """Half of the rows, but three in four conversations."""
    rows = [*chats(1), *[{"chat": 7 + n, **NO_OUTPUT} for n in range(3)]]
    dataset = {**JOINED, "filters": {"maxDropShare": limit}}
    if not fails:
        assert len(bench.prepare(rows, dataset=dataset).train) == 1
        return
    with pytest.raises(UserError, match="3 of 6 rows are like it, and 3 are dropped in all"):
        bench.prepare(rows, dataset=dataset)


def test_the_cause_is_named_where_its_companions_are_more(bench: Bench) -> None:
    rows = chats(2)
    rows[1]["output"] = rows[4]["output"] = ""
    with pytest.raises(
        UserError,
        match=r"^Row 2 of support\.jsonl has an assistant message without text; 2 of 6 rows are "
        r"like it, and 6 are dropped in all",
    ):
        bench.prepare(rows, dataset=JOINED)


SCOLDING = (
    "{% if messages[0]['content'] == 'refuse me' %}{{ raise_exception('no such question') }}"
    "{% endif %}"
)


@pytest.mark.parametrize(
    ("good", "bad", "reason", "detail"),
    [
        pytest.param({"text": "a tale"}, {"text": " \n"}, "empty-text", "has no text", id="text"),
        pytest.param(
            CHAT, {"text": "a"}, "missing-field", "has no field messages", id="another layout"
        ),
        pytest.param(
            CHAT,
            {"messages": [{"role": "user", "content": "refuse me"}, CHAT["messages"][1]]},
            "template-refused",
            "no such question",
            id="the template refuses it",
        ),
    ],
)
def test_rows_that_cannot_be_rendered_are_in_quarantine(
    bench: Bench, good: dict[str, Any], bad: dict[str, Any], reason: str, detail: str
) -> None:
    rows = [json.loads(json.dumps(good).replace("a tale", f"tale {n}")) for n in range(3)]
    dataset = {"filters": {"deduplicate": "off"}, "split": {"train": 1.0, "validation": 0.0}}
    data = bench.prepare([*rows, bad], template=SCOLDING + bench.kit.CHATML, dataset=dataset)
    [row] = bench.quarantine()
    assert (row["line"], row["reason"]) == (4, reason)
    assert detail in row["detail"]
    assert len(data.train) == 3


def test_a_row_whose_only_token_has_nothing_before_it_is_not_trained(bench: Bench) -> None:
    dataset = {"split": {"train": 1.0, "validation": 0.0}}
    data = bench.prepare([{"text": "Once upon a time"}, {"text": "<|im_end|>"}], dataset=dataset)
    assert [(row["line"], row["reason"]) for row in bench.quarantine()] == [(2, "no-trained-token")]
    assert len(data.train) == 1
