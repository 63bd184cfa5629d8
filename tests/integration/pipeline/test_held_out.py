"""The held-out rows while training: which are measured, when, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
from tests.integration.pipeline.unequal_rows import ALONE

from anneal_pipeline.config.steps import StepPlan
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.evaluation.perplexity import Evaluator
from anneal_pipeline.model.loading import TunedModel
from anneal_pipeline.training.held_out import HeldOutWatch
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.memory import RowLimit
from anneal_pipeline.training.state import Evaluated, RunState

PLAN = StepPlan(
    total_steps=10,
    steps_per_epoch=5,
    warmup_steps=0,
    evaluation_steps=5,
    checkpoint_steps=5,
    micro_batch_size=2,
    batch_size=2,
)
METRIC = "responsePerplexity"
MakeWatch = Callable[..., HeldOutWatch]


@pytest.fixture
def make_watch(kit: ModuleType, tuned: TunedModel, split: PreparedSplit) -> MakeWatch:
    """A watch over the splits that are named; the others are empty."""

    def make(*names: str, is_stopping: bool = False) -> HeldOutWatch:
        none = PreparedSplit(
            ids=split.ids, is_response=split.is_response, offsets=split.offsets[:1]
        )
        observer = kit.RecordingObserver(stop_at=0 if is_stopping else None)
        return HeldOutWatch(
            schedule="fixed",
            plan=PLAN,
            splits={name: split if name in names else none for name in ("validation", "test")},
            evaluator=Evaluator(
                model=tuned.model,
                path=LogitsPath(tuned.model),
                ranks=ALONE,
                pad_id=0,
                limit=RowLimit(rows=4, may_halve=False),
                wanted=(),
                should_stop=observer.should_stop,
                on_progress=lambda stage, done, total: None,
                on_halved=lambda rows, rank=0: None,
            ),
            metric=METRIC,
            observer=observer,
            ranks=ALONE,
            clock=lambda: 0.0,
        )

    return make


@pytest.mark.parametrize(
    ("held_out", "want"),
    [
        pytest.param(("validation", "test"), "validation", id="both"),
        pytest.param(("test",), "test", id="test alone"),
        pytest.param((), None, id="none"),
    ],
)
def test_validation_rows_are_watched_where_there_are_any(
    make_watch: MakeWatch, held_out: tuple[str, ...], want: str | None
) -> None:
    watch = make_watch(*held_out)
    assert watch.split == want
    assert watch.is_due(RunState(step=10)) == (want is not None)


def test_what_was_measured_is_in_the_state_and_not_due_again(make_watch: MakeWatch) -> None:
    watch, state = make_watch("validation"), RunState(step=5)
    assert watch.is_due(state)
    metrics = watch.measure(state)
    assert metrics is not None
    assert not watch.is_due(state)
    assert state.evaluations == [
        Evaluated(step=5, subject="tuned", split="validation", metrics=metrics)
    ]
    assert watch.values(METRIC, state=state) == [metrics[METRIC]]


def test_asked_to_stop_it_leaves_the_state_as_it_was(make_watch: MakeWatch) -> None:
    watch, state = make_watch("validation", is_stopping=True), RunState(step=5)
    assert watch.measure(state) is None
    assert state == RunState(step=5)
    assert watch.is_due(state)


def test_values_are_those_of_the_tuned_model_on_the_split_that_is_watched(
    make_watch: MakeWatch,
) -> None:
    def done(step: int, value: float, **other: str) -> Evaluated:
        metric = other.pop("metric", METRIC)
        place = {"subject": "tuned", "split": "validation", **other}
        return Evaluated(step=step, metrics={metric: value}, **place)

    state = RunState(
        evaluations=[
            done(0, 9.0, subject="base"),
            done(2, 8.0),
            done(4, 7.0, metric="tokenAccuracy"),
            done(6, 6.0),
            done(10, 5.0, split="test"),
        ]
    )
    watch = make_watch("validation", "test")
    assert watch.values(METRIC, state=state) == [8.0, 6.0]
    assert watch.values(METRIC, state=state, since=6) == [6.0]
