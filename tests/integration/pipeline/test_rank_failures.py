"""What goes wrong on one rank is known on all of them, at once, and no rank waits for ever."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.integration.pipeline.processes import Ended, run_ranks, values_of
from tests.integration.pipeline.rank_tasks import Deed, train


@pytest.fixture(scope="module")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(20))
    return path


def run_pair(
    kit: ModuleType, root: Path, *, model_dir: Path, rows: Path, deed: Deed, **training: Any
) -> list[Ended]:
    config = kit.make_config(
        dataset={"split": {"train": 0.8, "validation": 0.2}},
        training={"maxSteps": 6, **training},
        evaluation={"everySteps": 3, "numGenerations": 0, "baseline": False},
        checkpoint={"everySteps": 2},
        export={"verify": False},
    )
    return run_ranks(
        train, root, config, model_dir, rows, 1, deed, meeting=root / "meeting", count=2
    )


@pytest.mark.parametrize(
    ("kind", "rank", "words"),
    [
        pytest.param("raise", 1, "ValueError: odd shape", id="in a pass of the second rank"),
        pytest.param("raise", 0, "ValueError: odd shape", id="in a pass of the first rank"),
        pytest.param("cannot save", 0, "OSError: disk full", id="in a save"),
        pytest.param("cannot load", 1, "OSError: no model", id="while the model is loaded"),
    ],
)
def test_a_failure_of_one_rank_ends_the_others_with_its_words(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, kind: str, rank: int, words: str
) -> None:
    deed = Deed(kind, rank=rank, step=3)
    ended = run_pair(kit, tmp_path, model_dir=model_dir, rows=rows, deed=deed)
    assert ended[rank].error == words
    assert ended[1 - rank].error == f"RankFailedError: Rank {rank} of 2 failed: {words}"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_others(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, rank: int
) -> None:
    deed = Deed("die", rank=rank, step=3)
    ended = run_pair(kit, tmp_path, model_dir=model_dir, rows=rows, deed=deed)
    assert ended[rank].exit_code == -9
    assert (ended[1 - rank].error or "").startswith(
        "RankFailedError: Another rank ended without a word"
    )


def test_a_rank_that_miscalculates_is_found_at_the_next_save(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    deed = Deed("drift", rank=1, step=3)
    first, second = run_pair(kit, tmp_path, model_dir=model_dir, rows=rows, deed=deed)
    assert "Rank 1 holds other adapter weights than rank 0" in (second.error or "")
    assert first.error == f"RankFailedError: Rank 1 of 2 failed: {second.error}"
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [name[:11] for name in saved if name.startswith("step-")] == ["step-000002"]


def test_a_mistake_in_the_data_is_said_once_and_known_everywhere(
    kit: ModuleType, model_dir: Path, tmp_path: Path
) -> None:
    empty = kit.write_rows(tmp_path / "empty.jsonl", [])
    deed = Deed("stop", rank=0, step=1)
    first, second = run_pair(kit, tmp_path, model_dir=model_dir, rows=empty, deed=deed)
    assert (first.error or "").startswith("UserError: ")
    assert second.error == f"RankFailedError: Rank 0 of 2 failed: {first.error}"


def test_a_stop_while_data_are_prepared_is_a_stop_everywhere(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    deed = Deed("stop at once", rank=0, step=1)
    ended = run_pair(kit, tmp_path, model_dir=model_dir, rows=rows, deed=deed)
    assert [str(end.error).split(":")[0] for end in ended] == ["StopRequestedError"] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_memory_that_runs_out_on_one_rank_halves_the_micro_batch_of_all(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, rank: int
) -> None:
    deed = Deed("run out of memory", rank=rank, step=3)
    first, second = values_of(
        run_pair(kit, tmp_path, model_dir=model_dir, rows=rows, deed=deed, microBatchSize=2)
    )
    assert first.step == second.step == 6
    (told,) = [text for name, text in first.events if name == "recovered"]
    assert "with 2 rows" in told
    assert "going on with 1 rows" in told


def test_an_update_that_fails_on_one_rank_is_kept_on_none(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    deed = Deed("run out of memory in the update", rank=1, step=3)
    first, second = run_pair(kit, tmp_path, model_dir=model_dir, rows=rows, deed=deed)
    assert (second.error or "").startswith("UserError: Memory ran out while the adapters were")
    assert first.error == f"RankFailedError: Rank 1 of 2 failed: {second.error}"
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [name[:11] for name in saved if name.startswith("step-")] == ["step-000002"]


@pytest.mark.parametrize("rank", [0, 1])
def test_weights_damaged_on_one_rank_take_all_back_to_the_same_checkpoint(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, rank: int
) -> None:
    deed = Deed("damage", rank=rank, step=5)
    first, second = values_of(run_pair(kit, tmp_path, model_dir=model_dir, rows=rows, deed=deed))
    assert [step for step, _ in first.losses] == [1, 2, 3, 4, 5, 5, 6]
    assert first.step == second.step == 6
    (told,) = [text for name, text in first.events if name == "recovered"]
    assert "back to step 4" in told
