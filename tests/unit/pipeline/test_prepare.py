"""The data stage: what it leaves and says, done once, and interrupted without a trace."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from tests.unit.pipeline.bench import Bench

from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.prepare import prepare_data
from anneal_pipeline.errors import StopRequestedError, UserError
from anneal_pipeline.observer import EVENT_STAGE_REUSED, NullObserver


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


def test_few_rows_get_a_warning(bench: Bench) -> None:
    data = bench.prepare(bench.kit.sums(30))
    assert any("below 500" in warning for warning in data.report.warnings)


def test_the_log_names_format_and_layout(bench: Bench) -> None:
    bench.prepare([{"prompt": f"p {n}", "completion": f"c {n}"} for n in range(10)])
    said = dict(bench.observer.events)["data-ready"]
    assert said.startswith("Read 10 rows of jsonl as prompt-completion: ")


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


@pytest.mark.parametrize("num_rows", [499, 500])
def test_fewer_than_500_training_rows_are_warned_of(bench: Bench, num_rows: int) -> None:
    data = bench.prepare(
        bench.kit.sums(num_rows), dataset={"split": {"train": 1.0, "validation": 0.0}}
    )
    warned = [warning for warning in data.report.warnings if "rows to train on" in warning]
    assert [warning.split(";")[0] for warning in warned] == (
        ["Only 499 rows to train on"] if num_rows < 500 else []
    )
