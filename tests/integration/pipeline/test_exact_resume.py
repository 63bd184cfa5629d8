"""Killed at any step, even twice, a run ends bit-equal to the one that was left alone."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch

from anneal_pipeline.checkpoint.manifest import order_of
from anneal_pipeline.errors import UserError
from anneal_pipeline.observer import STAGE_TRAINING_EVALUATION

METHODS = {
    "fp32 LoRA": {"method": "lora", "lora": {"rank": 4, "dropout": 0.1}},
    "NF4 in fp32": {
        "method": "qlora",
        "lora": {"rank": 4, "dropout": 0.1},
        "quantization": {"computeDtype": "float32"},
    },
    "ranks that fall": {
        "method": "lora",
        "lora": {
            "rank": 4,
            "dropout": 0.1,
            "rankAllocation": {"startShare": 0.2, "endShare": 0.75},
        },
    },
}
STEPS = 8
"""One epoch of the 30 rows, whose last batch is partial, and one step of the next."""


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the pipeline handles it."""


def config_of(kit: ModuleType, method: str) -> Any:
    return kit.make_config(
        tuning=METHODS[method],
        training={
            "maxSteps": STEPS,
            "microBatchSize": 2,
            "earlyStopping": {"patience": 3, "minDelta": 0.5},
        },
        dataset={"split": {"train": 0.9, "validation": 0.1}},
        evaluation={"everySteps": 2, "numGenerations": 0, "baseline": False},
        checkpoint={"everySteps": 3, "keep": 3},
        export={"verify": False},
    )


@pytest.fixture(scope="module")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(30))
    return path


@pytest.fixture(scope="module")
def whole(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of the run that nobody disturbed, by method."""
    done: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in done:
            done[method] = tmp_path_factory.mktemp("whole")
            kit.run(done[method], config_of(kit, method), model_dir=model_dir, rows=rows)
        return done[method]

    return run


def final_state(root: Path) -> dict[str, object]:
    """Weights, moments, progress, metrics, best: everything the last checkpoint holds."""
    checkpoints = root / "checkpoints"
    last = max(
        (path for path in checkpoints.iterdir() if order_of(path.name)),
        key=lambda path: order_of(path.name) or (0, 0),
    )
    nameless = re.compile(r"-a\d\d-\w+")  # which attempt wrote it is the only difference
    state = json.loads(nameless.sub("", (last / "state.json").read_text()))
    return {
        "weights": (last / "adapter.safetensors").read_bytes(),
        "moments": (last / "optimizer.safetensors").read_bytes(),
        "allocation": [path.read_bytes() for path in last.glob("allocation.safetensors")],
        "state": state,
        "best": json.loads(nameless.sub("", (checkpoints / "best.json").read_text())),
        "artefacts": (root / "out" / "artifacts" / "manifest.json").read_bytes(),
    }


def dying(kit: ModuleType, step: int) -> Any:
    class Dying(kit.RecordingObserver):  # type: ignore[name-defined,misc]
        """Dies right after a step, and uses up random numbers of every kind on the way."""

        def on_step(self, report: Any) -> None:
            super().on_step(report)
            random.random()
            numpy.random.rand(3)
            torch.rand(report.step)
            if report.step == step:
                raise KilledError

    return Dying()


def run_killed_at(
    kit: ModuleType, root: Path, config: Any, *, model_dir: Path, rows: Path, steps: list[int]
) -> list[list[int]]:
    """One attempt for each kill and a last one; the steps that each of them took."""
    taken = []
    for attempt, step in enumerate([*steps, 0], start=1):
        observer = dying(kit, step)
        options = {"model_dir": model_dir, "rows": rows, "attempt": attempt, "observer": observer}
        if step:
            with pytest.raises(KilledError):
                kit.run(root, config, **options)
        else:
            kit.run(root, config, **options)
        taken.append([report.step for report in observer.steps])
    return taken


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_dropout_rng_sampler_and_epoch_survive_a_kill_at_each_step(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    whole: Callable[[str], Path],
    tmp_path: Path,
    method: str,
    step: int,
) -> None:
    """Pitfall: dropout, RNG, sampler, epoch seed lost on resume."""
    config = config_of(kit, method)
    taken = run_killed_at(
        kit, tmp_path, config, model_dir=model_dir, rows=rows, steps=[step, min(step + 1, STEPS)]
    )
    assert taken[0] == list(range(1, step + 1))
    assert taken[1][0] <= step, "the second attempt began after the first had died"
    assert final_state(tmp_path) == final_state(whole(method))


def test_adaptive_evaluations_are_at_the_same_steps_after_two_kills(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    """From 4 to 8 the metric has moved: the next evaluation comes after 2 steps in place of 4."""
    config = kit.make_config(
        training={"maxSteps": 12},
        dataset={"split": {"train": 0.9, "validation": 0.1}},
        evaluation={
            "everySteps": 4,
            "schedule": "adaptive",
            "numGenerations": 0,
            "baseline": False,
        },
        checkpoint={"everySteps": 3},
        export={"verify": False},
    )
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    observer = kit.RecordingObserver()
    kit.run(quiet, config, model_dir=model_dir, rows=rows, observer=observer)
    assert sorted({report.step for report in observer.evaluations}) == [4, 8, 10, 12]
    run_killed_at(kit, disturbed, config, model_dir=model_dir, rows=rows, steps=[9, 11])
    assert final_state(disturbed) == final_state(quiet)


@pytest.mark.parametrize("step", range(2, STEPS + 1, 2))
def test_a_stop_during_an_evaluation_that_is_due_loses_neither_it_nor_the_best_checkpoint(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    whole: Callable[[str], Path],
    tmp_path: Path,
    step: int,
) -> None:
    class Stopping(kit.RecordingObserver):  # type: ignore[name-defined,misc]
        def on_stage(self, stage: str, **progress: Any) -> None:
            super().on_stage(stage, **progress)
            self.is_evaluating = stage == STAGE_TRAINING_EVALUATION

        def should_stop(self) -> bool:
            return len(self.steps) == step and self.is_evaluating

    config = config_of(kit, "fp32 LoRA")
    options = {"model_dir": model_dir, "rows": rows}
    assert kit.run(tmp_path, config, observer=Stopping(), **options).interrupted
    observer = kit.RecordingObserver()
    kit.run(tmp_path, config, attempt=2, observer=observer, **options)
    assert not any("cannot be read" in message for _, message in observer.events)
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert (tmp_path / "checkpoints" / best["name"] / "manifest.json").is_file()
    assert final_state(tmp_path) == final_state(whole("fp32 LoRA"))


def flip(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(folder: Path) -> None:
    (folder / "adapter.safetensors").unlink()


def tear(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [flip, remove, tear])
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    whole: Callable[[str], Path],
    tmp_path: Path,
    damage: Callable[[Path], None],
) -> None:
    """Pitfall: torn checkpoint chosen as newest."""
    config = config_of(kit, "fp32 LoRA")
    options = {"model_dir": model_dir, "rows": rows}
    with pytest.raises(KilledError):
        kit.run(tmp_path, config, observer=dying(kit, 7), **options)
    names = kit.make_store(tmp_path).names()
    damage(tmp_path / "checkpoints" / names[0])
    observer = kit.RecordingObserver()
    kit.run(tmp_path, config, attempt=2, observer=observer, **options)
    before = order_of(names[1])
    assert before is not None
    assert observer.steps[0].step == before[0] + 1
    assert final_state(tmp_path) == final_state(whole("fp32 LoRA"))


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from tests.integration.pipeline.test_exact_resume import config_of
from tests.unit.pipeline import kit
import torch
from anneal_pipeline.checkpoint.local import LocalFolder

torch.set_num_threads(1)
root, model_dir, rows = map(Path, sys.argv[1:4])

class Torn(LocalFolder):
    def upload(self, source, name, **options):
        if name.startswith("step-000006") and name.endswith("optimizer.safetensors"):
            with self._begin(name).open("wb") as file:
                file.write(source.read_bytes()[:1000])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        super().upload(source, name, **options)

kit.LocalFolder = Torn
kit.run(root, config_of(kit, "fp32 LoRA"), model_dir=model_dir, rows=rows)
"""


def test_torn_checkpoint_of_a_kill_9_during_a_save_is_not_taken(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    whole: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Pitfall: torn checkpoint chosen as newest."""
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, tmp_path, model_dir, rows]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGKILL
    [torn] = [p for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("step-000006")]
    assert [path.name for path in torn.iterdir() if path.suffix == ".partial"]
    observer = kit.RecordingObserver()
    options = {"model_dir": model_dir, "rows": rows}
    kit.run(tmp_path, config_of(kit, "fp32 LoRA"), attempt=2, observer=observer, **options)
    assert observer.steps[0].step == 5
    assert final_state(tmp_path) == final_state(whole("fp32 LoRA"))


class TestAnotherRun:
    """Pitfall: changed batch size, data or packages accepted on resume."""

    @pytest.fixture
    def begun(self, kit: ModuleType, model_dir: Path, tmp_path: Path) -> Path:
        rows: Path = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(20))
        kit.run(tmp_path, self.config(kit), model_dir=model_dir, rows=rows)
        return rows

    def config(self, kit: ModuleType, *, accept: tuple[str, ...] = (), **training: Any) -> Any:
        return kit.make_config(
            training={"maxSteps": 2, "microBatchSize": 2, **training},
            evaluation={"numGenerations": 0, "baseline": False},
            checkpoint={"acceptChanges": list(accept)},
            export={"verify": False},
        )

    def test_a_changed_configuration_is_named_and_refused_or_accepted_by_its_name(
        self, kit: ModuleType, model_dir: Path, begun: Path, tmp_path: Path
    ) -> None:
        options = {"model_dir": model_dir, "rows": begun, "attempt": 2}
        changed = {"batchSize": 8, "maxSteps": 3}
        with pytest.raises(UserError, match=r"training.batchSize 4 -> 8") as caught:
            kit.run(tmp_path, self.config(kit, **changed), **options)
        assert caught.value.reason == "RunChanged"
        assert "acceptChanges: [training.maxSteps, training.batchSize]" in str(caught.value)
        with pytest.raises(UserError, match=r"another run: training.maxSteps 2 -> 3;"):
            kit.run(
                tmp_path, self.config(kit, accept=("training.batchSize",), **changed), **options
            )
        observer = kit.RecordingObserver()
        accepted = self.config(kit, accept=("training",), **changed)
        kit.run(tmp_path, accepted, observer=observer, **options)
        assert [report.step for report in observer.steps] == [3]
        assert any("training.batchSize 4 -> 8" in message for _, message in observer.events)

    @pytest.mark.parametrize("is_watched", [True, False])
    def test_other_times_of_evaluation_count_where_early_stopping_watches(
        self, kit: ModuleType, model_dir: Path, tmp_path: Path, *, is_watched: bool
    ) -> None:
        rows = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(20))
        options = {"model_dir": model_dir, "rows": rows}

        def config(accept: Sequence[str] = (), **evaluation: Any) -> Any:
            watched = {"earlyStopping": {"patience": 3}} if is_watched else {}
            return kit.make_config(
                training={"maxSteps": 2, **watched},
                dataset={"split": {"train": 0.5, "validation": 0.5}},
                evaluation={"numGenerations": 0, "baseline": False, **evaluation},
                checkpoint={"acceptChanges": list(accept)},
                export={"verify": False},
            )

        kit.run(tmp_path, config(everySteps=2), **options)
        other_words = config(everySteps=2, prompts=["What is 1 plus 1?"])
        assert kit.run(tmp_path, other_words, attempt=2, **options).step == 2
        if is_watched:
            with pytest.raises(UserError, match=r"another run: evaluation.everySteps 2 -> 1;"):
                kit.run(tmp_path, config(everySteps=1), attempt=3, **options)
        accept = ["evaluation.everySteps"] if is_watched else []
        assert kit.run(tmp_path, config(accept, everySteps=1), attempt=4, **options).step == 2

    def test_changed_rows_are_refused(
        self, kit: ModuleType, model_dir: Path, begun: Path, tmp_path: Path
    ) -> None:
        kit.write_rows(begun, kit.sums(24))
        with pytest.raises(UserError, match=r"dataset.content \w+ -> \w+"):
            kit.run(tmp_path, self.config(kit), model_dir=model_dir, rows=begun, attempt=2)

    def test_other_libraries_are_refused(
        self, kit: ModuleType, model_dir: Path, begun: Path, tmp_path: Path
    ) -> None:
        saved = self.libraries_of(tmp_path)
        assert saved.keys() >= {"anneal", "torch", "tokenizers", "jinja2", "numpy", "pyarrow"}
        self.replace_libraries(tmp_path, {**saved, "torch": "1.0", "gone": "2.0"})
        options = {"model_dir": model_dir, "rows": begun, "attempt": 2}
        with pytest.raises(UserError, match=r"libraries.torch 1.0 -> .*libraries.gone 2.0 -> uns"):
            kit.run(tmp_path, self.config(kit), **options)
        accept = ("libraries.torch", "libraries.gone")
        kit.run(tmp_path, self.config(kit, accept=accept), **options)

    @pytest.mark.parametrize("before", ["0.0.9", None], ids=["named", "of before it was named"])
    def test_another_version_of_anneal_is_refused_or_accepted_by_its_name(
        self, kit: ModuleType, model_dir: Path, begun: Path, tmp_path: Path, before: str | None
    ) -> None:
        """An upgrade strands no job: what the error asks for goes on from the checkpoint."""
        saved = self.libraries_of(tmp_path)
        now = saved.pop("anneal")
        self.replace_libraries(tmp_path, {**saved, **({"anneal": before} if before else {})})
        options = {"model_dir": model_dir, "rows": begun, "attempt": 2}
        change = f"libraries.anneal {before or 'unset'} -> {now}"
        with pytest.raises(UserError, match=re.escape(change)) as caught:
            kit.run(tmp_path, self.config(kit), **options)
        assert "checkpoint.acceptChanges: [libraries.anneal]" in str(caught.value)
        observer = kit.RecordingObserver()
        accepted = self.config(kit, accept=("libraries.anneal",), maxSteps=2)
        assert kit.run(tmp_path, accepted, observer=observer, **options).step == 2
        assert any(change in message for _, message in observer.events)

    def libraries_of(self, root: Path) -> dict[str, str]:
        path = next((root / "checkpoints").glob("step-*/manifest.json"))
        return dict(json.loads(path.read_text())["libraries"])

    def replace_libraries(self, root: Path, libraries: dict[str, str]) -> None:
        path = next((root / "checkpoints").glob("step-*/manifest.json"))
        path.write_text(json.dumps({**json.loads(path.read_text()), "libraries": libraries}))

    def test_another_number_of_threads_is_named(
        self, kit: ModuleType, model_dir: Path, begun: Path, tmp_path: Path
    ) -> None:
        threads, observer = torch.get_num_threads(), kit.RecordingObserver()
        torch.set_num_threads(threads + 1)
        try:
            kit.run(
                tmp_path,
                self.config(kit),
                model_dir=model_dir,
                rows=begun,
                attempt=2,
                observer=observer,
            )
        finally:
            torch.set_num_threads(threads)
        change = f"numThreads {threads} -> {threads + 1}"
        assert [message for _, message in observer.events if change in message]

    def test_a_change_of_the_adapters_cannot_be_accepted(
        self, kit: ModuleType, model_dir: Path, begun: Path, tmp_path: Path
    ) -> None:
        base = self.config(kit, accept=("tuning",)).to_data()
        base["tuning"]["lora"]["rank"] = 2
        config = type(self.config(kit)).parse(base)
        with pytest.raises(
            UserError, match=r"other adapters .* has shape \(4, 64\) there and \(2, 64\) here"
        ):
            kit.run(tmp_path, config, model_dir=model_dir, rows=begun, attempt=2)
