"""Success after the registry agrees, and a finished job that stays finished."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.unit.controller.conftest import (
    DIGEST,
    NOW,
    RUN,
    after,
    child,
    condition,
    ended_pod,
    outcome,
    report,
    running,
    spec,
)

from anneal_operator.api.reasons import ConditionType, Phase
from anneal_operator.draft import (
    CheckDigest,
    CloseRun,
    CreateChild,
    DeleteJob,
)
from anneal_operator.observation import Input, Tracking
from anneal_operator.plan import plan


def done() -> Input:
    told = report(outcome=outcome("Done").to_data())
    return after(
        {"report": told},
        {"child": child(result="Complete"), "pods": (ended_pod(code=0),)},
        start=running(),
    )


def test_success_waits_for_the_registry_and_the_run() -> None:
    current = done()
    decided = plan(current)
    assert decided.actions == (CheckDigest(model_name="support-bot", model_version="4"),)
    assert condition(decided, ConditionType.SUCCEEDED) == ("Unknown", "Accepted")

    assert decided.status.phase is Phase.RUNNING
    checked = replace(current, status=decided.status, tracking=Tracking(run=RUN, digest=DIGEST))
    decided = plan(checked)
    assert decided.actions == (CloseRun(run_id=RUN.run_id, state="FINISHED"),)
    assert condition(decided, ConditionType.REGISTERED) == ("True", "Registered")
    assert condition(decided, ConditionType.SUCCEEDED) == ("Unknown", "Accepted")

    closed = Tracking(run=RUN, digest=DIGEST, closed="FINISHED")
    decided = plan(replace(checked, status=decided.status, tracking=closed))
    assert condition(decided, ConditionType.SUCCEEDED) == ("True", "Succeeded")
    assert decided.status.phase is Phase.SUCCEEDED
    assert decided.status.display.progress == "100%"


@pytest.mark.parametrize("digest", ["", "sha256:" + "b" * 64])
def test_another_model_under_the_name_fails_the_job(digest: str) -> None:
    decided = plan(replace(done(), tracking=Tracking(run=RUN, digest=digest)))
    assert condition(decided, ConditionType.FAILED) == ("True", "DigestMismatch")


def test_nothing_is_created_for_a_finished_job_whatever_is_seen() -> None:
    over = {"child": child(result="Failed"), "pods": (ended_pod(code=65),)}
    failed = after(over, {"child": None, "pods": ()}, start=running())
    for change in ({}, {"spec": spec(suspend=True)}, {"profile": None}, {"tracking": Tracking()}):
        decided = plan(replace(failed, **change))
        assert not any(isinstance(action, CreateChild) for action in decided.actions)
        assert decided.status.phase is Phase.FAILED


def test_the_time_to_live_deletes_the_job_once_its_run_is_closed() -> None:
    over = {"child": child(result="Failed"), "pods": (ended_pod(code=65),)}
    failed = after(over, {}, start=running(spec=spec(ttlSecondsAfterFinished=60)))
    late = replace(failed, now=NOW + timedelta(seconds=60))
    assert not any(isinstance(action, DeleteJob) for action in plan(late).actions)
    closed = replace(late, tracking=Tracking(run=RUN, closed="FAILED"))
    assert plan(closed).actions == (DeleteJob(),)
    assert plan(replace(late, now=NOW + timedelta(hours=2))).actions[-1] == DeleteJob()
