"""How attempts end, whose budget that spends, and when the next one begins."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.controller.conftest import (
    NOW,
    after,
    child,
    ended_pod,
    outcome,
    pod,
    report,
    running,
    spec,
)

from anneal_operator.api.status import CheckpointStatus
from anneal_operator.draft import (
    CreateChild,
)
from anneal_operator.plan import plan

END_CASES = [
    pytest.param(
        ended_pod(code=65, outcome=outcome("User")),
        {},
        ("Failed", "TestUser", "User"),
        id="a user's mistake fails at once",
    ),
    pytest.param(
        ended_pod(code=137, container_reason="OOMKilled"),
        {},
        ("Failed", "OutOfMemory", "User"),
        id="out of memory is not repeated",
    ),
    pytest.param(
        ended_pod(code=203),
        {},
        ("Retrying", "BackingOff", "Infrastructure"),
        id="infrastructure is repeated",
    ),
    pytest.param(
        ended_pod(code=1),
        {"retry": {"infrastructure": 0}},
        ("Failed", "InfrastructureFailure", "Infrastructure"),
        id="without a budget the cause is the reason",
    ),
    pytest.param(
        ended_pod(code=75, outcome=outcome("Interrupted")),
        {},
        ("Retrying", "BackingOff", "Preemption"),
        id="an interruption is repeated",
    ),
    pytest.param(
        ended_pod(code=143, disruption="PreemptionByScheduler"),
        {},
        ("Retrying", "BackingOff", "Preemption"),
        id="a preempted pod without an outcome",
    ),
    pytest.param(
        ended_pod(code=143, disruption="DeletionByTaintManager"),
        {},
        ("Retrying", "BackingOff", "Infrastructure"),
        id="a lost node",
    ),
    pytest.param(
        ended_pod(code=1, outcome=outcome("Interrupted")),
        {},
        ("Retrying", "BackingOff", "Preemption"),
        id="the outcome outranks the exit code",
    ),
    pytest.param(
        ended_pod(code=0),
        {},
        ("Retrying", "BackingOff", "Infrastructure"),
        id="success without an outcome is none",
    ),
    pytest.param(
        ended_pod(code=0, outcome=outcome("Done", modelVersion=None)),
        {},
        ("Retrying", "BackingOff", "Infrastructure"),
        id="success without a registered version is none",
    ),
]


@pytest.mark.parametrize(("pod_seen", "fields", "want"), END_CASES)
def test_how_an_attempt_ends(
    pod_seen: Any, fields: dict[str, Any], want: tuple[str, str, str]
) -> None:
    over = {"child": child(result="Failed", reason="PodFailurePolicy"), "pods": (pod_seen,)}
    decided = plan(after(over, start=running(spec=spec(**fields))))
    attempt = decided.status.attempts[0]
    assert attempt.ended == NOW
    got = (str(decided.status.phase), decided.status.display.reason, attempt.attempt_class)
    assert got == want
    assert not any(isinstance(action, CreateChild) for action in decided.actions)


def test_the_next_attempt_starts_after_the_pause_from_the_checkpoint() -> None:
    told = report(step=12, checkpoint="step-000010", checkpointStep=10)
    over = {"child": child(result="Failed"), "pods": (ended_pod(code=203),), "report": None}
    waiting = after({"report": told}, over, start=running())
    decided = plan(waiting)
    assert decided.again_seconds == 10
    later = replace(waiting, status=decided.status, now=NOW + timedelta(seconds=10), child=None)
    decided = plan(later)
    assert decided.actions == (CreateChild(2),)
    assert decided.status.attempts[1].resumed_from_step == 10
    assert decided.status.spent.infrastructure == 1


def test_the_pause_doubles() -> None:
    current = running(spec=spec(retry={"infrastructure": 10}))
    pauses = []
    for number in range(1, 5):
        over = {"child": child(number, result="Failed"), "pods": (ended_pod(number, code=203),)}
        decided = plan(replace(current, **over))
        pauses.append(decided.again_seconds)
        current = after(
            {"now": NOW + timedelta(hours=2), "child": None},
            {"now": NOW, "child": child(number + 1), "pods": (pod(number + 1),)},
            {},
            start=replace(current, **over),
        )
    assert pauses == [10, 20, 40, 80]


def test_counters_go_on_where_the_list_of_attempts_ends() -> None:
    current = running(spec=spec(retry={"infrastructure": 20, "backoffSeconds": 0}))
    for number in range(1, 13):
        over = {"child": child(number, result="Failed"), "pods": (ended_pod(number, code=203),)}
        current = after(
            over,
            {"child": child(number + 1), "pods": (pod(number + 1),)},
            {},
            start=current,
        )
    status = current.status
    assert [attempt.number for attempt in status.attempts] == list(range(4, 14))
    assert (status.attempt, status.spent.infrastructure) == (13, 12)


def test_the_report_outranks_the_termination_log() -> None:
    told = report(outcome=outcome("User").to_data())
    last_words = ended_pod(code=1, outcome=outcome("Infrastructure"))
    over = {"child": child(result="Failed"), "pods": (last_words,), "report": told}
    decided = plan(after(over, start=running()))
    assert decided.status.attempts[0].attempt_class == "User"


def test_two_interruptions_without_a_newer_checkpoint_count_as_infrastructure() -> None:
    current = running(spec=spec(retry={"backoffSeconds": 0}))
    classes = []
    for number in (1, 2, 3):
        over = {"child": child(number, result="Failed"), "pods": (ended_pod(number, code=75),)}
        current = replace(current, **over)
        decided = plan(current)
        classes.append(decided.status.attempts[number - 1].attempt_class)
        current = after({"child": child(number + 1), "pods": (pod(number + 1),)}, {}, start=current)
    assert classes == ["Preemption", "Infrastructure", "Infrastructure"]
    assert current.status.spent.infrastructure == 2


def test_interruptions_that_saved_something_have_no_limit() -> None:
    current = running(spec=spec(retry={"backoffSeconds": 0, "infrastructure": 0}))
    for number in range(1, 8):
        told = report(attempt=number, checkpoint=f"step-{number}", checkpointStep=number)
        over = {
            "child": child(number, result="Failed"),
            "pods": (ended_pod(number, code=75),),
            "report": told,
        }
        current = after(
            over,
            {"child": child(number + 1), "pods": (pod(number + 1),), "report": None},
            {},
            start=current,
        )
    assert current.status.attempt == 8
    assert current.status.spent.preemption == 7


def test_an_interruption_after_training_went_back_has_saved_something_too() -> None:
    current = running(spec=spec(retry={"backoffSeconds": 0, "infrastructure": 0}))
    for number, step in ((1, 30), (2, 12), (3, 8)):
        name = f"step-{step:06d}-a{number:02d}-94a5f013-r1"
        told = report(attempt=number, checkpoint=name, checkpointStep=step)
        over = {
            "child": child(number, result="Failed"),
            "pods": (ended_pod(number, code=75),),
            "report": told,
        }
        begun = {"child": child(number + 1), "pods": (pod(number + 1),), "report": None}
        current = after(over, begun, {}, start=current)
    assert current.status.spent.preemption == 3
    assert [attempt.resumed_from_step for attempt in current.status.attempts] == [None, 30, 12, 8]


def test_without_resume_the_next_attempt_is_told_to_start_from_step_0() -> None:
    told = report(step=12, checkpoint="step-000010", checkpointStep=10)
    over = {"child": child(result="Failed"), "pods": (ended_pod(code=203),), "report": None}
    never = running(spec=spec(checkpoint={"resume": "Never"}))
    waiting = after({"report": told}, over, start=never)
    decided = plan(waiting)
    message = next(c for c in decided.status.conditions if c.reason == "BackingOff").message
    assert message.endswith("from step 0 (checkpoint.resume is Never).")

    begun = {"now": NOW + timedelta(seconds=10), "child": None}
    decided = plan(after(begun, start=waiting))
    assert decided.actions == (CreateChild(2),)
    assert decided.status.attempts[1].resumed_from_step is None


def test_without_resume_a_saved_checkpoint_does_not_make_interruptions_free() -> None:
    never = spec(retry={"backoffSeconds": 0}, checkpoint={"resume": "Never"})
    current = running(spec=never)
    for number in (1, 2):
        told = report(attempt=number, checkpoint=f"step-{number}", checkpointStep=number)
        over = {
            "child": child(number, result="Failed"),
            "pods": (ended_pod(number, code=75),),
            "report": told,
        }
        current = after(over, start=current)
        decided = plan(current)
        current = after(
            {"child": child(number + 1), "pods": (pod(number + 1),), "report": None},
            {},
            start=current,
        )
    classes = [attempt.attempt_class for attempt in decided.status.attempts[:2]]
    assert classes == ["Preemption", "Infrastructure"]


def test_without_resume_the_newest_checkpoint_is_the_new_attempts() -> None:
    never = spec(retry={"backoffSeconds": 0}, checkpoint={"resume": "Never"})
    told = report(checkpoint="step-000100", checkpointStep=100)
    over = {"child": child(result="Failed"), "pods": (ended_pod(code=203),), "report": told}
    second = after(
        over,
        {"child": child(2), "pods": (pod(2),), "report": None},
        start=running(spec=never),
    )
    again = report(attempt=2, checkpoint="step-000010-a02", checkpointStep=10)
    decided = plan(replace(second, report=again))
    assert decided.status.checkpoint == CheckpointStatus(name="step-000010-a02", step=10)
