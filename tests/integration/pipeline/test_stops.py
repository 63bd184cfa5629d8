"""A stop that comes in any stage ends the attempt, and the next one ends as if there was none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.unit.pipeline import kit as small

from anneal_pipeline.checkpoint.manifest import sha256_of
from anneal_pipeline.errors import StopRequestedError
from anneal_pipeline.stages import PipelineResult

Told = tuple[str, str, int, int]
"""(stage, unit, done, total)"""


@dataclass
class Stopping(small.RecordingObserver):
    """Asks for a stop once it has heard of such work, so many times."""

    at: Callable[[Told], bool] = lambda told: False
    times: int = 1
    told: list[Told] = field(default_factory=list)
    asks: bool = False

    def on_stage(self, stage: str, *, done: int, total: int, unit: str) -> None:
        self.told.append((stage, unit, done, total))
        if self.at(self.told[-1]):
            self.times -= 1
            self.asks = self.asks or self.times == 0

    def should_stop(self) -> bool:
        return self.asks


class Job:
    """One job below a folder, whose attempts are observed."""

    def __init__(self, root: Path, config: Any, *, model_dir: Path, rows: Path) -> None:
        self.root, self.config = root, config
        self._inputs = {"model_dir": model_dir, "rows": rows}
        self._attempts = 0

    def attempt(self, observer: Stopping) -> PipelineResult | None:
        """The result; None where the stop came before training."""
        self._attempts += 1
        options = {**self._inputs, "attempt": self._attempts, "observer": observer}
        try:
            return small.run(self.root, self.config, **options)
        except StopRequestedError:
            return None

    def outputs(self) -> dict[str, str]:
        folder = self.root / "out"
        kept = [*(folder / "artifacts").rglob("*"), folder / "evaluation" / "report.json"]
        return {str(p.relative_to(folder)): sha256_of(p) for p in kept if p.is_file()}


@pytest.fixture(scope="module")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(40))
    return path


@pytest.fixture(scope="module")
def config(kit: ModuleType) -> Any:
    return kit.make_config(
        training={"maxSteps": 4},
        # What is evaluated on the way is not what base and tuned are compared on.
        dataset={"split": {"train": 0.5, "validation": 0.25, "test": 0.25}},
        evaluation={"everySteps": 2, "numGenerations": 1},
        checkpoint={"everySteps": 2},
    )


@pytest.fixture(scope="module")
def whole(
    config: Any, model_dir: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, list[Told]]:
    """A run that nobody stopped, and the work it told of."""
    job = Job(tmp_path_factory.mktemp("whole"), config, model_dir=model_dir, rows=rows)
    observer = Stopping()
    result = job.attempt(observer)
    assert result is not None
    assert not result.interrupted
    return job, observer.told


def of(stage: str, unit: str) -> Callable[[Told], bool]:
    return lambda told: told[:2] == (stage, unit)


def is_last_batch(told: Told) -> bool:
    return told[0] == "evaluation" and told[2] == told[3] > 0


STAGES = [
    pytest.param(of("data", "bytes"), None, id="reading the data's digest"),
    pytest.param(of("data", "rows"), None, id="preparing data"),
    pytest.param(of("model", "weights"), None, id="loading the model"),
    pytest.param(of("model", "bytes"), None, id="reading the model's digest"),
    pytest.param(of("baseline", "batches"), 0, id="measuring the base"),
    pytest.param(of("training-evaluation", "batches"), 2, id="evaluating on the way"),
    pytest.param(of("evaluation", "batches"), 4, id="measuring the tuned model"),
    pytest.param(is_last_batch, 4, id="answering prompts"),
    pytest.param(of("evaluation", "adapters"), 4, id="measuring the adapters"),
]


@pytest.mark.parametrize(("at", "step"), STAGES)
def test_a_stop_in_any_stage_changes_nothing_of_the_result(
    config: Any,
    model_dir: Path,
    rows: Path,
    whole: tuple[Job, list[Told]],
    tmp_path: Path,
    at: Callable[[Told], bool],
    step: int | None,
) -> None:
    job = Job(tmp_path, config, model_dir=model_dir, rows=rows)
    stopping = Stopping(at=at)
    stopped = job.attempt(stopping)
    assert stopping.asks
    assert (stopped.step if stopped else None) == step
    assert stopped is None or (stopped.interrupted and stopped.adapter_dir is None)
    resumed = job.attempt(Stopping())
    assert resumed is not None
    assert not resumed.interrupted
    assert job.outputs() == whole[0].outputs()


def test_a_stop_while_a_checkpoint_is_read_leaves_it_for_the_next_attempt(
    config: Any, model_dir: Path, rows: Path, whole: tuple[Job, list[Told]], tmp_path: Path
) -> None:
    job = Job(tmp_path, config, model_dir=model_dir, rows=rows)
    assert job.attempt(Stopping(at=of("training-evaluation", "batches"))) is not None
    num_of_model = len([told for told in whole[1] if of("model", "bytes")(told)])
    reading = Stopping(at=of("model", "bytes"), times=num_of_model + 1)
    assert job.attempt(reading) is None
    assert reading.asks
    assert not reading.steps
    last = Stopping()
    assert job.attempt(last) is not None
    assert last.steps[0].step == 3
    assert job.outputs() == whole[0].outputs()


def test_a_stop_while_results_are_written_lets_them_be_written(
    config: Any, model_dir: Path, rows: Path, whole: tuple[Job, list[Told]], tmp_path: Path
) -> None:
    job = Job(tmp_path, config, model_dir=model_dir, rows=rows)
    writing = Stopping(at=lambda told: told[0] == "export")
    done = job.attempt(writing)
    assert writing.asks
    assert done is not None
    assert not done.interrupted
    assert job.outputs() == whole[0].outputs()


def test_every_weight_of_a_loading_model_is_told_of(whole: tuple[Job, list[Told]]) -> None:
    weights = [told[2:] for told in whole[1] if of("model", "weights")(told)]
    num_weights = weights[0][1]
    assert num_weights > 10
    assert weights == [(done, num_weights) for done in range(num_weights + 1)]
