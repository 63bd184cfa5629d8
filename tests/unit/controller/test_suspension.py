"""spec.suspend: the child goes, its pods are waited for, and the next attempt goes on."""

from dataclasses import replace

import pytest
from tests.unit.controller.conftest import (
    after,
    child,
    outcome,
    report,
    running,
    seen,
    spec,
)

from anneal_operator.api.reasons import ConditionType, Phase
from anneal_operator.conditions import find
from anneal_operator.draft import (
    CheckDigest,
    CreateChild,
    StopChild,
)
from anneal_operator.plan import plan


def test_suspending_deletes_the_child_and_waits_for_its_pods() -> None:
    asked = replace(running(), spec=spec(suspend=True))
    decided = plan(asked)
    assert decided.actions == (StopChild(child()),)
    assert decided.status.phase is Phase.SUSPENDING

    going = after({"child": child(deleting=True)}, start=asked)
    decided = plan(going)
    assert decided.actions == ()
    assert decided.status.phase is Phase.SUSPENDING

    gone = after({"child": None, "pods": ()}, start=going)
    decided = plan(gone)
    assert decided.status.phase is Phase.SUSPENDED
    assert decided.status.attempts[0].attempt_class == "Suspension"
    assert decided.status.spent.infrastructure == 0

    resumed = replace(gone, status=decided.status, spec=spec())
    assert plan(resumed).actions == (CreateChild(2),)


def test_a_job_suspended_from_the_start_makes_nothing() -> None:
    decided = plan(seen(spec=spec(suspend=True)))
    assert decided.status.phase is Phase.SUSPENDED
    assert decided.actions == ()


def test_a_job_that_finishes_while_it_is_being_suspended_has_finished() -> None:
    asked = replace(running(), spec=spec(suspend=True))
    told = report(outcome=outcome("Done").to_data())
    gone = after({"child": None, "pods": (), "report": told}, start=asked)
    decided = plan(gone)
    assert decided.status.attempts[0].attempt_class == "Done"
    assert decided.actions == (CheckDigest(model_name="support-bot", model_version="4"),)


@pytest.mark.parametrize(
    ("resume", "asked", "promised"),
    [
        ("Auto", "stop after saving a checkpoint", "starts from step 10."),
        ("Never", "stop; the GPUs", "starts from step 0 (checkpoint.resume is Never)."),
    ],
)
def test_a_suspended_job_promises_no_more_than_its_spec(
    resume: str, asked: str, promised: str
) -> None:
    told = report(step=12, checkpoint="step-000010", checkpointStep=10)
    checkpoint = {"resume": resume}
    start = running(spec=spec(checkpoint=checkpoint))
    going = after(
        {"report": told}, {"spec": spec(checkpoint=checkpoint, suspend=True)}, start=start
    )
    stopping = find(plan(going).status.conditions, ConditionType.SUSPENDED)
    assert stopping is not None
    assert asked in stopping.message
    gone = plan(after({"child": None, "pods": (), "report": None}, start=going))
    suspended = find(gone.status.conditions, ConditionType.SUSPENDED)
    assert suspended is not None
    assert suspended.message.endswith(promised)
