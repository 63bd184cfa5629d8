"""Rows that are too long or too short: dropped, cut or refused, as the job says."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.pipeline.bench import Bench

from anneal_pipeline.errors import UserError


@pytest.mark.parametrize(
    ("filters", "want"),
    [
        pytest.param({"overlength": "drop"}, {"too-long": 1}, id="drop"),
        pytest.param({"overlength": "truncate"}, {}, id="truncate"),
        pytest.param({"minResponseTokens": 4}, {"short-response": 1, "too-long": 1}, id="short"),
        pytest.param({"minTokens": 20}, {"too-short": 1, "too-long": 1}, id="minTokens"),
        pytest.param({"maxTokens": 30}, {"too-long": 6}, id="maxTokens"),
        pytest.param({"maxTokens": 500}, {"too-long": 1}, id="sequenceLength is a limit too"),
    ],
)
def test_length_filters(bench: Bench, filters: dict[str, Any], want: dict[str, int]) -> None:
    rows = [*bench.kit.sums(10), bench.kit.chat("a question", "z" * 300), bench.kit.chat("q", "z")]
    data = bench.prepare(rows, dataset={"filters": filters})
    assert data.report.dropped == want


def test_max_tokens_below_the_sequence_length_is_where_a_row_is_cut(bench: Bench) -> None:
    dataset = {
        "filters": {"overlength": "truncate", "maxTokens": 60},
        "split": {"train": 1.0, "validation": 0.0},
    }
    data = bench.prepare([bench.kit.chat("q", "z" * 300)], dataset=dataset)
    assert list(data.train.lengths()) == [60]


def test_a_cut_row_gains_no_end_of_turn(bench: Bench) -> None:
    """Pitfall: truncation cuts the answer or the end of turn silently."""
    dataset = {
        "filters": {"overlength": "truncate"},
        "split": {"train": 1.0, "validation": 0.0},
    }
    data = bench.prepare([bench.kit.chat("q", "z" * 300)], dataset=dataset)
    ids, is_response = data.train.row(0)
    assert data.report.num_truncated == 1
    assert len(ids) == 128
    assert int(ids[-1]) != bench.kit.make_tokenizer().eos_token_id
    assert int(is_response[-1]) == 1


def test_fail_names_the_over_long_row(bench: Bench) -> None:
    rows = [*bench.kit.sums(2), bench.kit.chat("q", "z" * 300)]
    with pytest.raises(UserError, match=r"Row 3 of support\.jsonl has \d+ tokens") as caught:
        bench.prepare(rows, dataset={"filters": {"overlength": "fail"}})
    assert caught.value.reason == "RowTooLong"


def test_truncation_leaves_all_minus_100_such_rows_are_dropped(bench: Bench) -> None:
    """Pitfall: truncation leaves all -100: loss 0 or NaN."""
    rows = [*bench.kit.sums(5), bench.kit.chat("z" * 300, "the answer that is cut away")]
    data = bench.prepare(rows, dataset={"filters": {"overlength": "truncate"}})
    assert data.report.dropped == {"response-cut-off": 1}
    for split in data.splits.values():
        assert all(int(split.row(i)[1][1:].sum()) > 0 for i in range(len(split)))
