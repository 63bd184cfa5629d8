"""The derived defaults of a run's step counts."""

from typing import Any

import pytest

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import StepPlan, auto_micro_batch_size, plan_steps, resolved
from anneal_pipeline.memory.estimate import Wish


def config(**sections: Any) -> PipelineConfig:
    return PipelineConfig.parse(
        {"model": {"uri": "s3://m/x"}, "dataset": {"uri": "s3://d/x"}, **sections}
    )


@pytest.mark.parametrize(
    ("sections", "want"),
    [
        pytest.param(
            {},
            StepPlan(
                total_steps=21,
                steps_per_epoch=7,
                warmup_steps=1,
                evaluation_steps=7,
                checkpoint_steps=2,
                micro_batch_size=8,
                batch_size=16,
            ),
            id="three epochs, a partial last batch, 3 % warm-up, a checkpoint each 10 %",
        ),
        pytest.param(
            {
                "training": {"maxSteps": 5, "warmupSteps": 9, "batchSize": 10},
                "evaluation": {"everySteps": 2},
                "checkpoint": {"everySteps": 3},
            },
            StepPlan(
                total_steps=5,
                steps_per_epoch=10,
                warmup_steps=5,
                evaluation_steps=2,
                checkpoint_steps=3,
                micro_batch_size=8,
                batch_size=10,
            ),
            id="what is written outranks what is derived; warm-up ends with the run",
        ),
        pytest.param(
            {"training": {"epochs": 0.5, "warmupRatio": 0.5}},
            StepPlan(
                total_steps=4,
                steps_per_epoch=7,
                warmup_steps=2,
                evaluation_steps=7,
                checkpoint_steps=1,
                micro_batch_size=8,
                batch_size=16,
            ),
            id="half an epoch rounds up",
        ),
    ],
)
def test_steps_are_derived(sections: dict[str, Any], want: StepPlan) -> None:
    assert plan_steps(config(**sections), num_sequences=100, micro_batch_size=8) == want


@pytest.mark.parametrize(
    ("percent", "want"), [(25, 7), (50, 14), (75, 21), (100, 27)], ids=lambda value: str(value)
)
def test_milestones_round_up(percent: int, want: int) -> None:
    plan = plan_steps(config(training={"maxSteps": 27}), num_sequences=9, micro_batch_size=8)
    assert plan.milestone_step(percent) == want


@pytest.mark.parametrize(
    ("checkpoint", "want"),
    [({}, (25, 50, 75, 100)), ({"milestones": []}, ()), ({"milestones": [10]}, (10,))],
    ids=["by default", "none", "its own"],
)
def test_adapters_are_kept_at_four_shares_unless_the_job_says_otherwise(
    checkpoint: dict[str, Any], want: tuple[int, ...]
) -> None:
    given = config(checkpoint=checkpoint)
    assert given.checkpoint.milestones == want
    assert PipelineConfig.parse(given.to_data()).checkpoint.milestones == want


@pytest.mark.parametrize(
    ("batch_size", "world_size", "want"), [(16, 1, 8), (16, 4, 4), (7, 1, 7), (11, 1, 1), (1, 2, 1)]
)
def test_the_micro_batch_divides_a_ranks_share(batch_size: int, world_size: int, want: int) -> None:
    assert auto_micro_batch_size(batch_size, world_size=world_size) == want


@pytest.mark.parametrize(
    ("fills_gpu", "asked", "want"),
    [(False, None, 8), (True, None, 48), (True, 4, 4)],
    ids=["on a CPU", "on a GPU", "as asked"],
)
def test_a_gpu_is_given_as_many_rows_as_divide_the_batch(
    fills_gpu: bool, asked: int | None, want: int
) -> None:
    training = {"batchSize": 96} | ({} if asked is None else {"microBatchSize": asked})
    wish = Wish.of(config(training=training), length=64, world_size=1, fills_gpu=fills_gpu)
    assert wish.setting.rows == want


@pytest.mark.parametrize(
    ("sections", "want"),
    [
        pytest.param(
            {},
            {
                "training.epochs": 3,
                "training.warmupRatio": 0.03,
                "training.microBatchSize": 4,
                "evaluation.everySteps": 7,
                "checkpoint.everySteps": 2,
                "dataset.split": {"train": 0.9, "validation": 0.1, "test": 0.0, "seed": 42},
            },
            id="all derived",
        ),
        pytest.param(
            {"training": {"maxSteps": 5, "warmupSteps": 2, "microBatchSize": 4}},
            {"training.epochs": None, "training.warmupRatio": None, "training.microBatchSize": 4},
            id="what is written stays and its other form stays away",
        ),
        pytest.param(
            {"dataset": {"files": {"train": "s3://d/x"}}}, {"dataset.split": None}, id="files"
        ),
    ],
)
def test_the_resolved_configuration_names_what_was_derived(
    sections: dict[str, Any], want: dict[str, Any]
) -> None:
    given = PipelineConfig.parse(
        {"model": {"uri": "s3://m/x"}, "dataset": {"uri": "s3://d/x"}, **sections}
    )
    plan = plan_steps(given, num_sequences=100, micro_batch_size=4)
    data = resolved(given, plan).to_data()
    for path, value in want.items():
        section, field = path.split(".")
        assert data[section].get(field) == value
    again = PipelineConfig.parse(data)
    assert plan_steps(again, num_sequences=100, micro_batch_size=4) == plan
    assert resolved(again, plan) == again
