"""Trouble in the middle of training: one run, no step twice, and the job still gets there."""

import pytest
from harness import stores
from harness.cluster import Object
from harness.scenarios import LONG, Story

STEPS = LONG["training"]["maxSteps"]


def _steps(story: Story) -> list[int]:
    run_id = story.status["mlflow"]["runId"]
    history = stores.mlflow_client().get_metric_history(run_id, "train/loss")
    return [point.step for point in history]


def _attempts(story: Story) -> list[Object]:
    assert story.status["phase"] == "Succeeded", story.status
    attempts: list[Object] = story.status["attempts"]
    return attempts


@pytest.fixture(params=["killed_pod", "deleted_pod", "signalled", "suspended"])
def interrupted(request: pytest.FixtureRequest) -> Story:
    story: Story = request.getfixturevalue(request.param)
    return story


def test_second_attempt_goes_on_from_the_checkpoint(interrupted: Story) -> None:
    first, second = _attempts(interrupted)
    assert second["class"] == "Done"
    assert second["resumedFromStep"] >= interrupted.at_trouble["checkpoint"]["step"]
    assert second["resumedFromStep"] > 0
    assert interrupted.children == [first["child"], second["child"]]


def test_it_stays_one_run_without_gap_or_repeated_step(interrupted: Story) -> None:
    _attempts(interrupted)
    assert interrupted.status["mlflow"]["runId"] == interrupted.at_trouble["mlflow"]["runId"]
    assert _steps(interrupted) == list(range(1, STEPS + 1))
    run = stores.mlflow_client().get_run(interrupted.status["mlflow"]["runId"])
    assert run.info.status == "FINISHED"


def test_one_version_is_registered(interrupted: Story) -> None:
    _attempts(interrupted)
    versions = stores.mlflow_client().search_model_versions(f"name = '{interrupted.job.name}'")
    assert len(versions) == 1


def test_killed_pod_counts_as_infrastructure(killed_pod: Story) -> None:
    first, _ = _attempts(killed_pod)
    assert first["class"] == "Infrastructure"
    assert killed_pod.status["spent"]["infrastructure"] == 1


def test_sigterm_to_the_pods_first_process_saves_and_exits_75(signalled: Story) -> None:
    first, second = _attempts(signalled)
    assert first["exitCode"] == 75
    assert first["class"] == "Preemption"
    assert first["outcome"]["class"] == "Interrupted"
    assert first["outcome"]["step"] == second["resumedFromStep"]


def test_deleted_pod_saves_before_it_goes(deleted_pod: Story) -> None:
    first, second = _attempts(deleted_pod)
    assert first["class"] == "Preemption"
    assert first["outcome"]["step"] == second["resumedFromStep"]


def test_suspension_loses_no_step(suspended: Story) -> None:
    first, second = _attempts(suspended)
    assert first["class"] == "Suspension"
    assert first["outcome"]["step"] == second["resumedFromStep"]
    assert suspended.at_trouble["phase"] == "Suspended"


def test_killed_operator_makes_one_child_per_attempt_and_the_job_succeeds(
    killed_operator: Story,
) -> None:
    attempts = _attempts(killed_operator)
    assert [attempt["number"] for attempt in attempts] == list(range(1, len(attempts) + 1))
    assert killed_operator.children == [attempt["child"] for attempt in attempts]
    assert _steps(killed_operator) == list(range(1, STEPS + 1))
