"""Two ranks on the CPU: the gradients and the run of one, stopped and resumed as one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
from tests.integration.pipeline.processes import run_ranks, values_of
from tests.integration.pipeline.rank_tasks import (
    LENGTHS,
    Deed,
    Trained,
    gradients,
    rows_taken,
    train,
)

from anneal_pipeline.checkpoint.manifest import order_of

STEPS = 8
"""One epoch of the 30 rows, whose last batch is partial, and one step of the next."""


@pytest.fixture(scope="module")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(30))
    return path


def config_of(kit: ModuleType, *, dropout: float) -> Any:
    return kit.make_config(
        tuning={"method": "lora", "lora": {"rank": 4, "dropout": dropout}},
        training={"maxSteps": STEPS, "microBatchSize": 2},
        dataset={"split": {"train": 0.9, "validation": 0.1}},
        evaluation={"everySteps": 2, "numGenerations": 0},
        checkpoint={"everySteps": 3, "milestones": [50, 100]},
        export={"verify": False},
    )


class Job:
    """A run and its attempts below one folder."""

    def __init__(self, root: Path, config: Any, *, model_dir: Path, rows: Path) -> None:
        self.root, self.config = root, config
        self._inputs = (model_dir, rows)
        self._attempts = 0

    def attempt(self, *, count: int, deed: Deed | None = None) -> list[Trained]:
        self._attempts += 1
        meeting = self.root / f"meeting-{self._attempts}"
        self.root.mkdir(exist_ok=True)
        arguments = (self.root, self.config, *self._inputs, self._attempts, deed)
        return values_of(run_ranks(train, *arguments, meeting=meeting, count=count))

    def final_state(self) -> dict[str, object]:
        """Everything the last checkpoint holds, and what was made of it."""
        found = [path for path in (self.root / "checkpoints").iterdir() if order_of(path.name)]
        last = max(found, key=lambda path: order_of(path.name) or (0, 0))
        nameless = re.compile(r"-a\d\d-\w+")  # which attempt wrote it is the only difference
        return {
            "weights": (last / "adapter.safetensors").read_bytes(),
            "moments": (last / "optimizer.safetensors").read_bytes(),
            "state": json.loads(nameless.sub("", (last / "state.json").read_text())),
            "artefacts": (self.root / "out" / "artifacts" / "manifest.json").read_bytes(),
        }


@pytest.fixture(scope="module")
def at_once(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Outcome and gradients of one rank that takes all rows in one pass."""
    meeting = tmp_path_factory.mktemp("alone") / "meeting"
    arguments = (model_dir, len(LENGTHS), len(LENGTHS))
    return values_of(run_ranks(gradients, *arguments, meeting=meeting, count=1))[0]


@pytest.mark.parametrize(("count", "micro_batch"), [(1, 1), (1, 2), (1, 4), (2, 8), (2, 1), (3, 2)])
def test_mean_of_means_any_cut_over_ranks_and_passes_has_the_same_gradients(
    model_dir: Path, tmp_path: Path, at_once: Any, count: int, micro_batch: int
) -> None:
    """Pitfall: mean-of-means under accumulation."""
    want, expected = at_once
    arguments = (model_dir, micro_batch, len(LENGTHS))
    for outcome, found in values_of(
        run_ranks(gradients, *arguments, meeting=tmp_path / "meeting", count=count)
    ):
        assert outcome.num_trained_tokens == want.num_trained_tokens
        assert outcome.loss == pytest.approx(want.loss, rel=1e-5)
        assert outcome.grad_norm == pytest.approx(want.grad_norm, rel=1e-5)
        for name, gradient in expected.items():
            scale = float(numpy.abs(gradient).max())
            numpy.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=1e-5 * scale)


def test_a_rank_without_a_row_in_the_window_has_the_gradients_of_the_others(
    model_dir: Path, tmp_path: Path
) -> None:
    ((want, expected),) = values_of(
        run_ranks(gradients, model_dir, 1, 1, meeting=tmp_path / "alone", count=1)
    )
    pair = values_of(run_ranks(gradients, model_dir, 1, 1, meeting=tmp_path / "pair", count=2))
    for outcome, found in pair:
        assert outcome == want
        for name, gradient in expected.items():
            numpy.testing.assert_array_equal(found[name], gradient)


def test_two_ranks_train_and_evaluate_like_one(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    config = config_of(kit, dropout=0.0)
    one = Job(tmp_path / "one", config, model_dir=model_dir, rows=rows)
    two = Job(tmp_path / "two", config, model_dir=model_dir, rows=rows)
    (alone,), (first, second) = one.attempt(count=1), two.attempt(count=2)
    assert (first.step, first.interrupted) == (second.step, second.interrupted) == (STEPS, False)
    assert first.losses == [(s, pytest.approx(loss, rel=1e-4)) for s, loss in alone.losses]
    assert first.evaluations == [pytest.approx(e, rel=1e-4) for e in alone.evaluations]
    assert second.tuned == first.tuned
    assert (second.losses, second.evaluations) == ([], []), "the first rank tells for all"
    for part in ("artifacts/adapter", "milestones/checkpoint-50pct", "evaluation"):
        assert (tmp_path / "two" / "out" / part).is_dir()


@pytest.fixture(scope="module")
def whole(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """The final state of two ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "job"
    job = Job(folder, config_of(kit, dropout=0.1), model_dir=model_dir, rows=rows)
    job.attempt(count=2)
    return job.final_state()


@pytest.mark.parametrize(("rank", "step"), [(0, 2), (1, 5)])
def test_a_stop_on_one_rank_stops_all_at_that_step_and_resumes_to_the_same_bits(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    whole: dict[str, object],
    tmp_path: Path,
    rank: int,
    step: int,
) -> None:
    job = Job(tmp_path, config_of(kit, dropout=0.1), model_dir=model_dir, rows=rows)
    stopped = job.attempt(count=2, deed=Deed("stop", rank=rank, step=step))
    assert [(end.step, end.interrupted) for end in stopped] == [(step, True)] * 2
    resumed = job.attempt(count=2)
    assert [(end.step, end.interrupted) for end in resumed] == [(STEPS, False)] * 2
    assert [done for done, _ in resumed[0].losses] == list(range(step + 1, STEPS + 1))
    assert job.final_state() == whole


def test_another_number_of_ranks_goes_on_and_is_named(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    job = Job(tmp_path, config_of(kit, dropout=0.0), model_dir=model_dir, rows=rows)
    job.attempt(count=2, deed=Deed("stop", rank=0, step=3))
    (resumed,) = job.attempt(count=1)
    assert resumed.step == STEPS
    (warning,) = [text for name, text in resumed.events if "other conditions" in text]
    assert "worldSize 2 -> 1" in warning


@pytest.mark.parametrize("tight", [0, 1])
def test_ranks_take_the_micro_batch_of_the_one_with_least_room(
    model_dir: Path, tmp_path: Path, tight: int
) -> None:
    found = run_ranks(rows_taken, model_dir, tight, meeting=tmp_path / "meeting", count=2)
    assert values_of(found) == [1, 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_tells_of_every_rank_whose_evaluation_ran_out_of_memory(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, rank: int
) -> None:
    config = kit.make_config(
        training={"maxSteps": 1, "microBatchSize": 2},
        dataset={"split": {"train": 0.1, "validation": 0.9}},
        evaluation={"numGenerations": 0, "everySteps": 1},
        export={"verify": False},
    )
    whole = Job(tmp_path / "whole", config, model_dir=model_dir, rows=rows).attempt(count=2)
    job = Job(tmp_path / "short", config, model_dir=model_dir, rows=rows)
    ends = job.attempt(count=2, deed=Deed("evaluate with little memory", rank=rank, step=0))
    told = [[text for name, text in end.events if name == "recovered"] for end in ends]
    want = "Memory ran out in an evaluation; going on with 2 rows per forward pass there on rank"
    assert told == [[f"{want} {rank}"], []]
    assert ends[0].tuned == pytest.approx(whole[0].tuned, rel=1e-5)
