"""What the ranks of a test do in their processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.integration.pipeline.processes import die
from tests.unit.pipeline import kit

from anneal_pipeline import opening
from anneal_pipeline.checkpoint.store import CheckpointStore
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.evaluation.perplexity import Evaluator
from anneal_pipeline.memory.estimate import planning
from anneal_pipeline.memory.fit import MARGIN, Setting
from anneal_pipeline.memory.room import Room
from anneal_pipeline.memory.trace import Place
from anneal_pipeline.micro_batch import MicroBatch
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.four_bit import BaseForm
from anneal_pipeline.model.loading import load_tuned_model
from anneal_pipeline.training.batches import Batch, collate, micro_batches
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.optimizer import AdapterOptimizer, StepOutcome
from anneal_pipeline.training.ranks import Ranks

CPU = torch.device("cpu")
LENGTHS = [40, 35, 30, 20, 15, 10, 5]
"""Unequal, longest first as in a step; the last window of 2 rows is partial."""


def gradients(rank: int, count: int, model_dir: Path, micro_batch: int, rows: int) -> Any:
    """Outcome and gradients of one step over the first `rows` rows."""
    config = kit.make_config(
        tuning={"lora": {"rank": 4, "dropout": 0.0}}, training={"gradientCheckpointing": False}
    )
    tuned = load_tuned_model(config, folder=model_dir, device=CPU)
    tuned.model.train()
    parameters = trainable_parameters(tuned.model)
    for index, parameter in enumerate(parameters.values()):
        torch.manual_seed(index)
        parameter.data.normal_(std=0.05)
    ranks = Ranks(rank=rank, world_size=count, device=CPU)
    optimizer = AdapterOptimizer(
        TrainingConfig(max_grad_norm=1e6), model=tuned.model, compute=torch.float32, ranks=ranks
    )
    batches = _batches(micro_batches(ranks.share_of(range(rows)), micro_batch))
    outcome = optimizer.gather(LogitsPath(tuned.model), batches)
    return outcome, {name: p.grad.numpy() for name, p in parameters.items()}


def rows_taken(rank: int, count: int, model_dir: Path, tight: int) -> int:
    """The micro-batch, where one rank has room for little and the other for everything."""
    config = kit.make_config()
    form = BaseForm(in_4_bit=False)
    free = 1 << 40
    if rank == tight:
        place = Place(compute=torch.float32, in_4_bit=False, on_gpu=False)
        plan_of = planning(config, folder=model_dir, place=place)
        two = plan_of(Setting(rows=2, length=64, checkpointing=True)).peak
        free = int(two / (1 + MARGIN)) + 1  # so tight that one row of the share is taken
    chooser = MicroBatch(
        config=config,
        length=64,
        ranks=Ranks(rank=rank, world_size=count, device=CPU),
        room_of=lambda ranks: Room(limit=free, libraries=0),
        observer=kit.RecordingObserver(),
    )
    return chooser.plan(folder=model_dir, form=form)


def _batches(groups: list[tuple[int, ...]]) -> list[Batch]:
    torch.manual_seed(3)
    split = PreparedSplit(
        ids=torch.randint(4, 300, (sum(LENGTHS),), dtype=torch.int32),
        is_response=torch.tensor([int(i > n // 3) for n in LENGTHS for i in range(n)]),
        offsets=torch.tensor([0, *LENGTHS]).cumsum(0),
    )
    return [collate(split, rows, pad_id=0, train_all=False) for rows in groups]


@dataclass(frozen=True)
class Deed:
    """Something that one rank does at one optimiser step, counted from 1 in its process."""

    kind: str
    rank: int
    step: int


@dataclass(frozen=True)
class Trained:
    interrupted: bool
    step: int
    losses: list[tuple[int, float]]
    evaluations: list[dict[str, float]]
    events: list[tuple[str, str]]
    tuned: dict[str, float]


def train(
    rank: int,
    count: int,
    root: Path,
    config: PipelineConfig,
    model_dir: Path,
    rows: Path,
    attempt: int,
    deed: Deed | None,
) -> Trained:
    """The whole pipeline, with a deed on one of the ranks."""
    observer = Asking()
    if deed is not None and deed.rank == rank:
        _arrange(deed, observer)
    result = kit.run(
        root,
        config,
        model_dir=model_dir,
        rows=rows,
        attempt=attempt,
        observer=observer,
        rank=rank,
        world_size=count,
    )
    return Trained(
        interrupted=result.interrupted,
        step=result.step,
        losses=[(report.step, report.loss) for report in observer.steps],
        evaluations=[dict(report.metrics) for report in observer.evaluations],
        events=observer.events,
        tuned=dict(result.tuned_metrics),
    )


@dataclass
class Asking(kit.RecordingObserver):
    asks: bool = False

    def should_stop(self) -> bool:
        return self.asks


def _arrange(deed: Deed, observer: Asking) -> None:
    """Let the deed happen; the process is not used for anything else."""
    if deed.kind == "stop at once":
        observer.asks = True
        return
    if deed.kind == "cannot save":
        _replace(CheckpointStore, "save", lambda original: _raise(OSError("disk full")))
        return
    if deed.kind == "cannot load":
        _replace(opening, "load_tuned_model", lambda original: _raise(OSError("no model")))
        return
    if deed.kind == "evaluate with little memory":
        _replace(Evaluator, "_batch_sums", _limit_rows)
        return
    deeds: dict[str, Callable[[], None]] = {
        "stop": lambda: setattr(observer, "asks", True),
        "raise": lambda: _break_forward(ValueError("odd shape")),
        "run out of memory": lambda: _break_forward(MemoryError()),
        "run out of memory in the update": lambda: _replace(
            torch.optim.AdamW, "step", lambda original: _raise(MemoryError())
        ),
        "die": die,
        "damage": lambda: _after_apply(lambda weights: weights.fill_(float("nan"))),
        "drift": lambda: _after_apply(lambda weights: weights.mul_(1.001)),
    }
    taken = 0

    def wrap(gather: Callable[..., StepOutcome]) -> Callable[..., StepOutcome]:
        def counting(self: AdapterOptimizer, *arguments: Any) -> StepOutcome:
            nonlocal taken
            taken += 1
            if taken == deed.step:
                deeds[deed.kind]()
            return gather(self, *arguments)

        return counting

    _replace(AdapterOptimizer, "gather", wrap)


def _limit_rows(measure: Callable[..., Any]) -> Callable[..., Any]:
    """Let the real allocator refuse more than two rows."""

    def hungry(self: Evaluator, batch: Batch) -> Any:
        if len(batch.ids) > 2:
            torch.empty(1 << 50)
        return measure(self, batch)

    return hungry


def _after_apply(change: Callable[[torch.Tensor], object]) -> None:
    """Change weights after they have been moved, once."""

    def wrap(apply: Callable[..., bool]) -> Callable[..., bool]:
        def damaging(self: AdapterOptimizer, *arguments: Any, **options: Any) -> bool:
            is_settled = apply(self, *arguments, **options)
            change(self.adamw.param_groups[0]["params"][-1].data)
            AdapterOptimizer.apply = apply
            return is_settled

        return damaging

    _replace(AdapterOptimizer, "apply", wrap)


def _break_forward(error: Exception) -> None:
    """Fail in the middle of the next pass, once."""

    def wrap(backward: Callable[..., float]) -> Callable[..., float]:
        def failing(*arguments: Any, **options: Any) -> float:
            LogitsPath.backward = backward
            raise error

        return failing

    _replace(LogitsPath, "backward", wrap)


def _raise(error: Exception) -> Callable[..., None]:
    def failing(*arguments: Any, **options: Any) -> None:
        raise error

    return failing


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))
