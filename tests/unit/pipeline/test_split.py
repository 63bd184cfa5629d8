"""Sides follow from content; what belongs together stays together; leaks are found."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.data.conversation import Conversation, Turn
from anneal_pipeline.data.files import SPLITS
from anneal_pipeline.data.near import NearIndex, components, first_of_equal, shingles
from anneal_pipeline.data.rows import Place
from anneal_pipeline.data.survey import Judgement, Survey
from anneal_pipeline.errors import UserError

WORDS = [f"w{n}" for n in range(400)]


def conversation(text: str, *, line: int = 1, **labels: str) -> Conversation:
    turns = (Turn("user", "q"), Turn("assistant", text))
    return Conversation(place=Place(file="rows.jsonl", line=line), turns=turns, labels=labels)


def judge(
    folder: Path,
    rows: list[Conversation],
    *,
    sides: list[str | None] | None = None,
    filters: dict[str, Any] | None = None,
    **split: Any,
) -> Judgement:
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    data = {"uri": "x", "split": {**shares, **split}, "filters": filters or {}}
    config = DatasetConfig.parse(data)
    with NearIndex(folder / "signatures", on_work=lambda count: None) as near:
        survey = Survey(config, config.effective_split, near)
        for index, row in enumerate(rows):
            survey.add(row, side=sides[index] if sides else None)
        survey.require_labels()
        return survey.judge()


def sentence(seed: int, *, length: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def changed(words: list[str], *, count: int) -> list[str]:
    """The sentence with its last words replaced."""
    return words[: len(words) - count] + [f"other{n}" for n in range(count)]


texts = st.lists(st.integers(0, 10_000), min_size=1, max_size=40, unique=True)


@settings(max_examples=30)
@given(old=texts, new=texts, order=st.randoms(use_true_random=False))
def test_adding_rows_moves_no_old_one(
    tmp_path_factory: pytest.TempPathFactory, old: list[int], new: list[int], order: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("near")
    before = judge(folder, [conversation(" ".join(sentence(n))) for n in old])
    together = list({*old, *new})
    order.shuffle(together)
    after = judge(folder, [conversation(" ".join(sentence(n))) for n in together])
    sides = {n: after.of(together.index(n)).side for n in old}
    assert sides == {n: before.of(index).side for index, n in enumerate(old)}


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    rows = []
    for n in range(60):
        words = sentence(n)
        rows += [conversation(" ".join(w)) for w in (words, changed(words, count=1))]
    judgement = judge(tmp_path, rows)
    sides = [judgement.of(i).side for i in range(len(rows))]
    assert sides[::2] == sides[1::2]
    assert set(sides) == set(SPLITS)
    assert judgement.num_near == 60
    assert not judgement.repeats


def test_near_duplicates_are_dropped_where_the_job_says_so(tmp_path: Path) -> None:
    words = sentence(1)
    rows = [
        conversation(" ".join(words), line=1),
        conversation(" ".join(changed(words, count=1)), line=2),
        conversation(" ".join(words).upper(), line=3),
        conversation(" ".join(sentence(2)), line=4),
        conversation(" ".join(changed(words, count=30)), line=5),
    ]
    verdicts = judge(tmp_path, rows, filters={"deduplicate": "near"})
    assert [verdicts.of(i).dropped for i in range(5)] == [
        None,
        "near-duplicate",
        "near-duplicate",
        None,
        None,
    ]
    assert verdicts.of(1).detail == "resembles row 1 of rows.jsonl"


def test_a_chain_of_resemblance_keeps_what_resembles_nothing_kept(tmp_path: Path) -> None:
    words = sentence(5, length=100)
    steps = [changed(words, count=count) for count in (0, 6, 12, 18, 24)]
    verdicts = judge(
        tmp_path, [conversation(" ".join(s)) for s in steps], filters={"deduplicate": "near"}
    )
    dropped = [verdicts.of(i).dropped is not None for i in range(5)]
    assert dropped[0] is False
    assert dropped[1] is True
    assert dropped[4] is False


@pytest.mark.parametrize(
    ("deduplicate", "dropped", "leaks"), [("exact", None, 1), ("near", "resembles-held-out-row", 0)]
)
def test_leaks_over_a_given_split_are_found(
    tmp_path: Path, deduplicate: str, dropped: str | None, leaks: int
) -> None:
    words = sentence(3)
    rows = [
        conversation(" ".join(words)),
        conversation(" ".join(words)),
        conversation(" ".join(changed(words, count=1))),
        conversation(" ".join(sentence(4))),
    ]
    sides: list[str | None] = ["test", "train", "train", "train"]
    verdicts = judge(tmp_path, rows, sides=sides, filters={"deduplicate": deduplicate})
    assert verdicts.of(1).dropped == "repeats-held-out-row"
    assert verdicts.of(2).dropped == dropped
    assert verdicts.of(3).dropped is None
    assert verdicts.num_near_leaks == leaks
    assert [verdicts.of(i).side for i in range(4)] == sides


def test_groups_stay_together_and_adding_to_one_moves_none(tmp_path: Path) -> None:
    def rows(per_group: int) -> list[Conversation]:
        return [
            conversation(" ".join(sentence(100 * g + n)), user=f"u{g}")
            for g in range(40)
            for n in range(per_group)
        ]

    few, many = (judge(tmp_path, rows(n), groupBy="user") for n in (2, 5))
    sides = {g: {many.of(5 * g + n).side for n in range(5)} for g in range(40)}
    assert all(len(found) == 1 for found in sides.values())
    assert {g: {few.of(2 * g).side} for g in range(40)} == sides
    assert set().union(*sides.values()) == set(SPLITS)


def test_strata_keep_their_proportions_on_every_side(tmp_path: Path) -> None:
    kinds = ["common"] * 100 + ["rare"] * 20
    rows = [conversation(" ".join(sentence(n)), kind=kind) for n, kind in enumerate(kinds)]
    judgement = judge(tmp_path, rows, stratifyBy="kind")
    found = Counter((kind, judgement.of(n).side) for n, kind in enumerate(kinds))
    assert found == {
        ("common", "train"): 60,
        ("common", "validation"): 20,
        ("common", "test"): 20,
        ("rare", "train"): 12,
        ("rare", "validation"): 4,
        ("rare", "test"): 4,
    }


def test_a_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names the column topic, which no row has"):
        judge(tmp_path, [conversation("a")], stratifyBy="topic")


def test_a_cluster_larger_than_the_held_out_share_is_trained_on(tmp_path: Path) -> None:
    words = sentence(7, length=200)
    rows = [conversation(" ".join([*words, str(n)])) for n in range(50)]
    judgement = judge(tmp_path, [*rows, *(conversation(" ".join(sentence(n))) for n in range(20))])
    assert {judgement.of(n).side for n in range(50)} == {"train"}


@given(st.lists(st.integers(0, 5), max_size=30))
def test_first_of_equal_pairs_every_repetition_with_its_first(values: list[int]) -> None:
    pairs = first_of_equal(np.array(values, dtype=np.uint64)).tolist()
    want = [[values.index(v), i] for i, v in enumerate(values) if values.index(v) != i]
    assert sorted(pairs) == sorted(want)


def test_components_join_over_others() -> None:
    labels = components(5, np.array([[0, 2], [2, 4]])).tolist()
    assert labels[0] == labels[2] == labels[4]
    assert len(set(labels)) == 3


def test_short_texts_are_one_shingle() -> None:
    assert shingles(["a", "b"]) == {"a b"}
    assert shingles(["a", "b", "c", "d"]) == {"a b c", "b c d"}


def test_a_row_of_two_groups_is_in_quarantine_once(tmp_path: Path) -> None:
    """Equal rows of two groups join them, so that they are a duplicate and no leak."""
    rows = [conversation("same words here", user="a"), conversation("same words here", user="b")]
    judgement = judge(tmp_path, rows, groupBy="user")
    assert [judgement.of(i).dropped for i in range(2)] == [None, "duplicate"]
    assert judgement.of(1).detail == "repeats row 1 of rows.jsonl"
