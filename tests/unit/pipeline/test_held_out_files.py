"""What is held out decides nothing about how the rows to train on are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.pipeline.bench import Bench

from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.prepare import PreparedData
from anneal_pipeline.errors import DATASET_LAYOUT_UNKNOWN, UserError

ALPACA = [{"instruction": f"Say {n}", "output": f"It is {n}."} for n in range(4)]


def prepare(
    bench: Bench, train: list[Any], *, validation: list[Any], test: list[Any], **sections: Any
) -> PreparedData:
    sides = {"train": train, "validation": validation, "test": test}
    paths = {
        name: (bench.kit.write_rows(bench.root / f"{name}.jsonl", rows),)
        for name, rows in sides.items()
    }
    return bench.prepare_files(DatasetFiles(**paths), **sections)


def prepared_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_change_of_held_out_rows_leaves_the_prepared_training_rows_byte_equal(
    bench: Bench,
) -> None:
    train = bench.kit.sums(12)
    one = prepare(
        bench, train, validation=[bench.kit.chat("v", "1")], test=[bench.kit.chat("t", "1")]
    )
    before = prepared_bytes(one.folder / "train")
    # More rows, of other fields, and most of those that are read first of another layout.
    more = [{**bench.kit.chat(f"other {n}", "answer"), "source": "b"} for n in range(30)]
    two = prepare(bench, train, validation=more[1:], test=[*ALPACA, more[0]])
    assert prepared_bytes(two.folder / "train") == before
    assert (len(two.splits["validation"]), len(two.splits["test"])) == (29, 1)
    assert two.report.layout_fields == one.report.layout_fields


@pytest.mark.parametrize("side", ["validation", "test"])
def test_a_held_out_file_of_another_layout_is_refused_by_name(bench: Bench, side: str) -> None:
    held_out = {"validation": [bench.kit.chat("v", "1")], "test": [bench.kit.chat("t", "1")]}
    with pytest.raises(UserError) as caught:
        prepare(bench, bench.kit.sums(12), **{**held_out, side: ALPACA})
    assert caught.value.reason == DATASET_LAYOUT_UNKNOWN
    assert caught.value.message == (
        f"Row 1 of {side}.jsonl, which is held out, has the fields instruction, output "
        "(instruction); expected messages as in the rows to train on (messages); convert the file, "
        "because rows of both must be read alike"
    )


def test_single_held_out_rows_of_another_layout_are_in_quarantine(bench: Bench) -> None:
    held_out = [ALPACA[0], bench.kit.chat("v", "1")]
    data = prepare(bench, bench.kit.sums(12), validation=held_out, test=[bench.kit.chat("t", "1")])
    [row] = bench.quarantine()
    assert (row["file"], row["line"], row["reason"]) == ("validation.jsonl", 1, "missing-field")
    assert len(data.train) == 12


def test_held_out_rows_without_tools_are_of_the_layout_of_those_with_them(bench: Bench) -> None:
    calls = [
        {"messages": bench.kit.chat("q", "a")["messages"], "tools": [{"name": "add"}]},
        *bench.kit.sums(9),
    ]
    data = prepare(
        bench,
        calls,
        validation=[bench.kit.chat("v", "1")],
        test=[bench.kit.chat("t", "1")],
        template="{% if tools %}{{ tools }}{% endif %}" + bench.kit.CHATML,
    )
    assert data.report.layout == "tools"
    assert len(data.splits["validation"]) == len(data.splits["test"]) == 1


def test_columns_named_by_the_job_are_looked_for_in_the_training_rows(bench: Bench) -> None:
    columns = {"columns": {"instruction": "ask", "response": "reply"}}
    train = [{"ask": row["instruction"], "reply": row["output"]} for row in ALPACA]
    with pytest.raises(UserError, match=r"Row 1 of test\.jsonl, .* expected ask, reply as in"):
        prepare(bench, train, validation=[{"ask": "v", "reply": "1"}], test=ALPACA, dataset=columns)


def test_training_rows_none_of_which_can_be_read_are_the_cause_that_is_named(bench: Bench) -> None:
    train = bench.root / "train.jsonl"
    train.write_text("{\n" * 101)
    held_out = bench.kit.write_rows(bench.root / "test.jsonl", ALPACA)
    with pytest.raises(UserError, match=r"Row 1 of train\.jsonl is not valid JSON"):
        bench.prepare_files(DatasetFiles(train=(train,), test=(held_out,)))


def test_the_first_row_that_can_be_read_decides_however_far_down_it_stands(bench: Bench) -> None:
    train = bench.root / "train.jsonl"
    bench.kit.write_rows(train, bench.kit.sums(9))
    train.write_text("{\n" * 101 + train.read_text())
    held_out = bench.kit.write_rows(bench.root / "test.jsonl", [bench.kit.chat("t", "1")])
    data = bench.prepare_files(
        DatasetFiles(train=(train,), validation=(held_out,)),
        dataset={"filters": {"maxDropShare": 1.0}},
    )
    assert len(data.train) == 9
