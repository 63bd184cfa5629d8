"""What the demo reads out of a job's status, and what it leaves for programs."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from failure import JobFailedError
from job import Job
from mlflow_page import server_of
from progress import facts
from result import result_of

WANTED_KEYS = [
    "job", "namespace", "phase", "runId", "mlflowUrl", "modelName", "modelVersion",
    "basePerplexity", "tunedPerplexity", "trainSeconds", "totalSeconds", "outputUri",
]  # fmt: skip


def job(**status: Any) -> Job:
    return Job({"metadata": {"uid": "1f2e3d4c"}, "status": status})


def succeeded_job() -> Job:
    return job(
        phase="Succeeded",
        mlflow={
            "runId": "3f9c",
            "url": "http://198.18.0.1:30500/#/experiments/1/runs/3f9c",
            "modelName": "python-help",
            "modelVersion": 2,
        },
        metrics={"basePerplexity": 80.0, "tunedPerplexity": 20.0, "trainSeconds": 301.26},
        outputUri="s3://anneal/outputs/anneal-demo/python-help-1f2e3d4c",
    )


def test_result_has_exactly_the_agreed_keys() -> None:
    result = result_of(succeeded_job(), total_seconds=400.04)

    assert list(json.loads(json.dumps(asdict(result)))) == WANTED_KEYS
    assert result.modelVersion == "2"
    assert (result.trainSeconds, result.totalSeconds) == (301.3, 400.0)
    assert result.fall == pytest.approx(0.75)


def test_success_without_a_registered_version_is_a_failure() -> None:
    broken = succeeded_job()
    del broken.status["mlflow"]["modelVersion"]

    with pytest.raises(JobFailedError, match="has no modelVersion"):
        result_of(broken, total_seconds=1.0)


def test_job_that_nobody_has_looked_at_is_pending() -> None:
    fresh = Job({"metadata": {"uid": "1f2e3d4c"}})

    assert fresh.phase == "Pending"
    assert not fresh.is_over
    assert fresh.waits_for == ""
    assert facts(fresh) == ""


def condition(kind: str, status: str, message: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": "Why", "message": message}


@pytest.mark.parametrize(
    ("conditions", "want"),
    [
        pytest.param(
            [
                condition("Provisioned", "False", "No room."),
                condition("Running", "False", "Later."),
            ],
            "No room.",
            id="the earliest cause speaks",
        ),
        pytest.param(
            [condition("Failed", "True", "Row 17."), condition("Running", "False", "Over.")],
            "Row 17.",
            id="failure outranks waiting",
        ),
        pytest.param(
            [condition("Provisioned", "False", "Old."), condition("Running", "True", "Runs.")],
            "",
            id="nothing to wait for once it runs",
        ),
    ],
)
def test_reason_for_waiting(conditions: list[dict[str, str]], want: str) -> None:
    assert job(phase="Starting", conditions=conditions).waits_for == want


def test_facts_of_a_running_job() -> None:
    running = job(
        phase="Running",
        progress={"stage": "train", "step": 50, "totalSteps": 134, "loss": 2.5, "etaSeconds": 185},
    )

    assert facts(running) == "train  step 50/134  loss 2.500  3 min 05 s left"


def test_server_of_a_page() -> None:
    page = "http://198.18.0.1:30500/#/experiments/1/runs/3f9c"

    assert server_of(page) == "http://198.18.0.1:30500"
