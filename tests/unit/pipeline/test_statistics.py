"""The page people look at before they burn a GPU."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.prepare import prepare_data
from anneal_pipeline.data.statistics import histogram_of
from anneal_pipeline.data.statistics_page import _html_table


class Marked(HTMLParser):
    """Collects the text of a page, that inside <mark> apart, and the bars."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = self.marked = ""
        self.num_bars = 0
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.num_bars += tag == "rect"
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open[-1:] == ["mark"]:
            self.marked += data


@pytest.fixture
def folder(kit: ModuleType, tmp_path: Path) -> Path:
    rows = [*kit.sums(20), kit.chat("<script>?", "an & answer"), {"messages": []}]
    files = DatasetFiles(train=(kit.write_rows(tmp_path / "rows.jsonl", rows),))
    tokenizer = kit.make_tokenizer()
    prepare_data(
        kit.make_config(),
        files=files,
        folder=tmp_path / "data",
        tokenizer=tokenizer,
        stop_ids=frozenset([tokenizer.eos_token_id]),
        observer=kit.RecordingObserver(),
    )
    return tmp_path / "data"


def test_the_page_marks_what_is_trained_and_nothing_else(folder: Path) -> None:
    page = Marked((folder / "report.html").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "train/rows.jsonl").read_text().splitlines()]
    answers = [row["messages"][1]["content"] for row in rows[:3]]
    assert page.marked == "marked" + "".join(f"{answer}<|im_end|>" for answer in answers)
    assert all(row["messages"][0]["content"] in page.text for row in rows[:3])


def test_the_page_tells_lengths_layout_warnings_and_drops(folder: Path) -> None:
    page = Marked((folder / "report.html").read_text(encoding="utf-8"))
    assert page.num_bars > 2
    for told in (
        "messages, read from the fields messages",
        "below 500",
        "no-assistant-message",
        "row 22 of rows.jsonl has no assistant message",
        "95 %",
    ):
        assert told in page.text
        assert told in (folder / "report.md").read_text(encoding="utf-8")


def test_columns_of_numbers_stand_to_the_right_with_thousands_apart() -> None:
    rows = [("train", "1234567", "1659.3"), ("<test>", "0", "12")]
    table = _html_table(("split", "tokens", "mean length"), iter(rows))
    assert '<td class="n">1\u202f234\u202f567</td><td class="n">1\u202f659.3</td>' in table
    assert "<td>&lt;test&gt;</td>" in table


def test_report_json_counts_what_the_page_shows(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report["dropped"] == {"no-assistant-message": 1}
    assert (report["formats"], report["layout"]) == (["jsonl"], "messages")
    assert not list(folder.rglob("*.partial"))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_histograms_count_every_row_once(values: list[int]) -> None:
    histogram = histogram_of("x", torch.tensor(values))
    assert sum(histogram.counts) == len(values)
    assert len(histogram.counts) <= 24
    assert histogram.longest == max(values)
    first = sum(1 for value in values if value <= histogram.width)
    assert histogram.counts[0] == first
