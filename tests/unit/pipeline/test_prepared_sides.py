"""The side each row is on: by its content, and never on two."""

from __future__ import annotations

import json

import pytest
from tests.unit.pipeline.bench import Bench

from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.prepare import PreparedData


def sides(data: PreparedData) -> dict[str, str]:
    found = {}
    for name in data.splits:
        for line in (data.folder / name / "rows.jsonl").read_text().splitlines():
            found[json.loads(line)["messages"][0]["content"]] = name
    return found


def test_adding_rows_moves_no_old_one(bench: Bench) -> None:
    before = sides(bench.prepare(bench.kit.sums(60)))
    after = sides(bench.prepare([bench.kit.chat("new", "row"), *reversed(bench.kit.sums(90))]))
    assert {question: after[question] for question in before} == before
    assert set(before.values()) == {"train", "validation"}


def test_rows_whose_group_is_null_are_no_group(bench: Bench) -> None:
    rows = [{**row, "user": None if n else "one"} for n, row in enumerate(bench.kit.sums(60))]
    data = bench.prepare(rows, dataset={"split": {"groupBy": "user"}})
    assert all(len(data.splits[name]) for name in ("train", "validation"))


def test_another_seed_splits_otherwise(bench: Bench) -> None:
    one = sides(bench.prepare(bench.kit.sums(60)))
    two = sides(bench.prepare(bench.kit.sums(60), dataset={"split": {"seed": 7}}))
    assert one != two


@pytest.mark.parametrize(
    ("mode", "num_rows", "dropped"),
    [("exact", 10, {"duplicate": 2}), ("off", 12, {})],
)
def test_repeated_rows_stay_where_that_is_wanted(
    bench: Bench, mode: str, num_rows: int, dropped: dict[str, int]
) -> None:
    rows = bench.kit.sums(10)
    dataset = {
        "filters": {"deduplicate": mode},
        "split": {"train": 1.0, "validation": 0.0},
    }
    data = bench.prepare([*rows, rows[0], rows[0]], dataset=dataset)
    assert len(data.train) == num_rows
    assert data.report.dropped == dropped


def test_repeated_rows_that_stay_are_on_one_side(bench: Bench) -> None:
    rows = bench.kit.sums(20)
    dataset = {"filters": {"deduplicate": "off"}, "split": {"train": 0.5, "validation": 0.5}}
    data = bench.prepare([*rows, *rows], dataset=dataset)
    questions = {
        name: [
            json.loads(line)["messages"][0]["content"]
            for line in (data.folder / name / "rows.jsonl").read_text().splitlines()
        ]
        for name in ("train", "validation")
    }
    assert len(questions["train"]) + len(questions["validation"]) == 40
    assert set(questions["train"]).isdisjoint(questions["validation"])


def test_a_split_that_exists_is_kept_and_its_leaks_are_dropped(bench: Bench) -> None:
    rows = bench.kit.sums(12)
    train = bench.kit.write_rows(bench.root / "train.jsonl", rows[:10])
    held = bench.kit.write_rows(bench.root / "held.jsonl", [*rows[10:], rows[0]])
    data = bench.prepare_files(
        DatasetFiles(train=(train,), validation=(held,)),
        dataset={"uri": None, "files": {"train": "train.jsonl", "validation": "held.jsonl"}},
    )
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 9,
        "validation": 3,
        "test": 0,
    }
    assert [(r["file"], r["line"], r["reason"]) for r in bench.quarantine()] == [
        ("train.jsonl", 1, "repeats-held-out-row")
    ]


def test_a_split_that_has_no_effect_is_said(bench: Bench) -> None:
    train = bench.kit.write_rows(bench.root / "train.jsonl", bench.kit.sums(8))
    held = bench.kit.write_rows(bench.root / "dev.jsonl", bench.kit.sums(10)[8:])
    data = bench.prepare_files(
        DatasetFiles(train=(train,), validation=(held,)), dataset={"split": {"seed": 7}}
    )
    assert any("dataset.split has no effect" in warning for warning in data.report.warnings)
    assert len(data.splits["validation"]) == 2
