"""The data stage: every row is trained on, held out, or in quarantine with its reason."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.prepare import PreparedData, prepare_data
from anneal_pipeline.errors import StopRequestedError, UserError
from anneal_pipeline.observer import EVENT_STAGE_REUSED, NullObserver, Observer
from anneal_pipeline.training.row_places import row_places


class Bench:
    """One place to prepare data in, again and again."""

    def __init__(self, kit: ModuleType, root: Path) -> None:
        self.kit, self.root = kit, root
        self.observer: Any = None

    def prepare(self, rows: list[Any], **options: Any) -> PreparedData:
        train = self.kit.write_rows(self.root / "support.jsonl", rows)
        return self.prepare_files(DatasetFiles(train=(train,)), **options)

    def prepare_files(
        self,
        files: DatasetFiles | None,
        *,
        observer: Observer | None = None,
        template: str | None = None,
        **sections: Any,
    ) -> PreparedData:
        self.observer = observer or self.kit.RecordingObserver()
        tokenizer = self.kit.make_tokenizer(template=template or self.kit.CHATML)
        return prepare_data(
            self.kit.make_config(**sections),
            files=files,
            folder=self.root / "data",
            tokenizer=tokenizer,
            stop_ids=frozenset([tokenizer.eos_token_id]),
            observer=self.observer,
        )

    def quarantine(self) -> list[dict[str, Any]]:
        lines = (self.root / "data" / "quarantine.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def bench(kit: ModuleType, tmp_path: Path) -> Bench:
    return Bench(kit, tmp_path)


CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a tale"}]}
NO_ANSWER = {"messages": [{"role": "user", "content": "hello?"}]}


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


@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
def test_what_is_prepared_is_not_prepared_again(bench: Bench, packing: bool) -> None:
    training = {"packing": packing}
    first = bench.prepare(bench.kit.sums(30), training=training)
    assert (first.report.packing is not None) == packing
    for files in (DatasetFiles(train=(bench.root / "support.jsonl",)), None):
        again = bench.prepare_files(files, training=training)
        assert EVENT_STAGE_REUSED in [name for name, _ in bench.observer.events]
        assert again.report == first.report
        assert again.train.ids.tolist() == first.train.ids.tolist()


def test_packing_changes_the_report_and_not_the_rows(bench: Bench) -> None:
    files = DatasetFiles(train=(bench.kit.write_rows(bench.root / "a.jsonl", bench.kit.sums(30)),))
    alone = bench.prepare_files(files)
    packed = bench.prepare_files(files, training={"packing": True})
    assert packed.report.packing is not None, "what was prepared without it says nothing of it"
    assert packed.report.digest == alone.report.digest


def test_another_template_than_that_of_the_prepared_rows_is_named(bench: Bench) -> None:
    bench.prepare(bench.kit.sums(30))
    tokenizer = bench.kit.make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "model")
    with pytest.raises(UserError, match="has another chat template") as caught:
        prepare_data(
            bench.kit.make_config(),
            files=None,
            folder=bench.root / "data",
            tokenizer=tokenizer,
            stop_ids=frozenset(),
            observer=bench.observer,
        )
    assert caught.value.reason == "RunChanged"


def test_changed_rows_are_prepared_again_with_another_digest(bench: Bench) -> None:
    first = bench.prepare(bench.kit.sums(30))
    second = bench.prepare(bench.kit.sums(31))
    assert first.report.digest != second.report.digest
    assert EVENT_STAGE_REUSED not in [name for name, _ in bench.observer.events]


@dataclass
class Stopping(NullObserver):
    """Keeps the work on rows it hears of; asks for a stop at the report of that number."""

    stop_at: int = -1
    told: list[tuple[str, int]] = field(default_factory=list)

    def on_stage(self, stage: str, *, done: int, total: int, unit: str) -> None:
        if unit != "bytes":  # of the files, read for their digest before
            self.told.append((unit, done))

    def should_stop(self) -> bool:
        return len(self.told) == self.stop_at


def test_both_passes_and_the_comparison_between_them_report_their_work(bench: Bench) -> None:
    observer = Stopping()
    bench.prepare(bench.kit.sums(250), observer=observer)
    rows = [told for told in observer.told if told[0] == "rows"]
    compared = [done for unit, done in observer.told if unit == "rows compared"]
    assert rows == [("rows", done) for done in (200, 200, 250)]
    assert len(compared) >= 16
    assert compared == sorted(set(compared))
    assert observer.told.index(("rows compared", compared[-1])) == len(compared)


@pytest.mark.parametrize("pass_of_work", ["first", "comparison", "clusters", "second"])
def test_a_stop_leaves_nothing_and_the_next_attempt_prepares_anew(
    bench: Bench, pass_of_work: str
) -> None:
    texts = [" ".join(str(n // 2 * 20 + k) for k in range(15)) for n in range(250)]
    rows = [bench.kit.chat(text, "odd" if n % 2 else "even") for n, text in enumerate(texts)]
    near = {"filters": {"deduplicate": "near"}}
    whole = Stopping()
    first = bench.prepare(rows, observer=whole, dataset=near)
    assert first.report.dropped["near-duplicate"] > 50
    compared = [number for number, (unit, _) in enumerate(whole.told, 1) if unit != "rows"]
    stop_at = {
        "first": 1,
        "comparison": compared[0],
        "clusters": compared[-1],
        "second": len(whole.told),
    }[pass_of_work]
    (bench.root / "data" / "report.json").unlink()
    with pytest.raises(StopRequestedError):
        bench.prepare(rows, observer=Stopping(stop_at=stop_at), dataset=near)
    assert not (bench.root / "data").exists()
    assert bench.prepare(rows, dataset=near).report == first.report


def test_few_rows_get_a_warning(bench: Bench) -> None:
    data = bench.prepare(bench.kit.sums(30))
    assert any("below 500" in warning for warning in data.report.warnings)


def test_truncation_leaves_all_minus_100_such_rows_are_dropped(bench: Bench) -> None:
    """Pitfall: truncation leaves all -100: loss 0 or NaN."""
    rows = [*bench.kit.sums(5), bench.kit.chat("z" * 300, "the answer that is cut away")]
    data = bench.prepare(rows, dataset={"filters": {"overlength": "truncate"}})
    assert data.report.dropped == {"response-cut-off": 1}
    for split in data.splits.values():
        assert all(int(split.row(i)[1][1:].sum()) > 0 for i in range(len(split)))


def test_plain_text_is_trained_whole_and_ends(bench: Bench) -> None:
    data = bench.prepare(
        [{"text": "Once upon a time"}], dataset={"split": {"train": 1.0, "validation": 0.0}}
    )
    ids, is_response = data.train.row(0)
    tokenizer = bench.kit.make_tokenizer()
    assert data.report.layout == "text"
    assert tokenizer.decode(ids[:-1]) == "Once upon a time"
    assert int(ids[-1]) == tokenizer.eos_token_id
    assert is_response.all()


def test_a_split_that_has_no_effect_is_said(bench: Bench) -> None:
    train = bench.kit.write_rows(bench.root / "train.jsonl", bench.kit.sums(8))
    held = bench.kit.write_rows(bench.root / "dev.jsonl", bench.kit.sums(10)[8:])
    data = bench.prepare_files(
        DatasetFiles(train=(train,), validation=(held,)), dataset={"split": {"seed": 7}}
    )
    assert any("dataset.split has no effect" in warning for warning in data.report.warnings)
    assert len(data.splits["validation"]) == 2


def test_the_log_names_format_and_layout(bench: Bench) -> None:
    bench.prepare([{"prompt": f"p {n}", "completion": f"c {n}"} for n in range(10)])
    said = dict(bench.observer.events)["data-ready"]
    assert said.startswith("Read 10 rows of jsonl as prompt-completion: ")
