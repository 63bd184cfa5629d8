"""The decisions of finetunejob.md, case by case."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

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
    pod,
    report,
    running,
    seen,
    spec,
)

from anneal_operator.api.reasons import ConditionType, Phase
from anneal_operator.api.status import CheckpointStatus
from anneal_operator.draft import (
    CheckDigest,
    CloseRun,
    CreateChild,
    DeleteJob,
    EnsureRun,
    StopChild,
)
from anneal_operator.observation import Input, Tracking
from anneal_operator.plan import plan


def test_a_new_job_is_accepted_and_its_first_child_intended() -> None:
    decided = plan(seen())
    assert condition(decided, ConditionType.ACCEPTED) == ("True", "Accepted")
    assert decided.actions == (CreateChild(1),)
    assert decided.status.attempt == 1
    assert decided.status.attempts[0].child == "support-bot-1f2e3d4c-1"
    assert decided.status.output_uri == "s3://models/team-a/support-bot-1f2e3d4c"
    assert decided.status.mlflow is not None
    assert decided.status.mlflow.run_id == RUN.run_id


def test_the_same_picture_gives_the_same_decision_and_status() -> None:
    once = plan(running())
    twice = plan(replace(running(), status=once.status))
    assert twice.status == once.status
    assert twice.actions == ()


def test_without_a_run_there_is_no_attempt() -> None:
    decided = plan(seen(tracking=Tracking()))
    assert decided.actions == (EnsureRun(),)
    assert decided.status.attempt == 0


def test_an_mlflow_that_does_not_answer_is_named() -> None:
    decided = plan(seen(tracking=Tracking(error="no answer")))
    assert condition(decided, ConditionType.ACCEPTED) == ("True", "Accepted")
    assert condition(decided, ConditionType.PROVISIONED) == ("False", "TrackingUnreachable")
    assert decided.status.display.reason == "TrackingUnreachable"


def test_the_profile_is_snapshotted_at_first_sight() -> None:
    changed = after({"profile": None}, {"child": child(), "pods": (pod(),)})
    decided = plan(changed)
    assert decided.status.profile is not None
    assert decided.status.profile.generation == 3
    assert condition(decided, ConditionType.RUNNING) == ("True", "Running")


def test_a_running_attempt_shows_its_progress() -> None:
    told = report(
        step=120, totalSteps=285, loss=1.3141, checkpoint="step-000120", checkpointStep=120
    )
    decided = plan(replace(running(), report=told))
    status = decided.status
    assert status.phase is Phase.RUNNING
    assert (status.display.progress, status.display.step) == ("42%", "120/285")
    assert (status.display.loss, status.display.eta) == ("1.314", "6m")
    assert status.checkpoint == CheckpointStatus(name="step-000120", step=120)
    assert condition(decided, ConditionType.CHECKPOINT_AVAILABLE) == ("True", "CheckpointSaved")


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


def test_the_active_deadline_counts_all_attempts_and_stops_the_pod_first() -> None:
    limited = spec(deadlines={"activeSeconds": 100})
    current = running(spec=limited)
    current = replace(current, status=current.status.model_copy(update={"active_seconds": 69.0}))
    assert plan(current).again_seconds == 1
    late = replace(current, now=NOW + timedelta(seconds=1))
    decided = plan(late)
    assert decided.actions == (StopChild(child()),)
    assert condition(decided, ConditionType.FAILED) is None

    gone = replace(late, status=decided.status, child=None, pods=())
    decided = plan(gone)
    assert condition(decided, ConditionType.FAILED) == ("True", "ActiveDeadlineExceeded")
    assert CloseRun(run_id=RUN.run_id, state="KILLED") in decided.actions


def test_the_pending_deadline_names_what_was_waited_for() -> None:
    limited = spec(deadlines={"pendingSeconds": 60})
    stuck = pod(phase="Pending", node=None, started=None, unschedulable="0/1 nodes: no GPU")
    current = after({"child": child(), "pods": (stuck,)}, {}, start=seen(spec=limited))
    assert plan(current).again_seconds == 15
    late = replace(current, now=NOW + timedelta(seconds=60))
    decided = plan(late)
    assert decided.actions == (StopChild(child()),)
    decided = plan(replace(late, status=decided.status, child=None, pods=()))
    assert condition(decided, ConditionType.FAILED) == ("True", "PendingDeadlineExceeded")
    assert "no GPU" in decided.status.conditions[-1].message


def test_a_silent_trainer_counts_as_hung() -> None:
    limited = spec(deadlines={"stallSeconds": 600})
    current = replace(running(spec=limited), report=report(step=3, worked_at=NOW))
    assert plan(current).again_seconds == 600
    silent = replace(current, now=NOW + timedelta(seconds=600))
    decided = plan(silent)
    assert decided.actions == (StopChild(child()),)
    gone = replace(silent, status=decided.status, child=None, pods=())
    decided = plan(gone)
    assert decided.status.attempts[0].reason == "Stalled"
    assert decided.status.spent.infrastructure == 1


def test_the_stall_clock_starts_with_the_leader() -> None:
    limited = spec(deadlines={"stallSeconds": 600})
    quiet = replace(
        running(spec=limited),
        now=NOW + timedelta(hours=5),
        serving_since=NOW + timedelta(hours=5) - timedelta(seconds=100),
    )
    decided = plan(quiet)
    assert decided.actions == ()
    assert decided.again_seconds == 500


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


def test_a_child_that_somebody_deleted_is_not_made_again_under_its_number() -> None:
    decided = plan(after({"child": None, "pods": ()}, start=running()))
    assert decided.status.attempts[0].attempt_class == "Infrastructure"
    assert decided.status.attempts[0].ended is not None


def test_an_intent_without_a_child_is_carried_out() -> None:
    decided = plan(after({}))
    assert decided.actions == (CreateChild(1),)
    assert decided.status.attempt == 1


def test_two_attempts_are_never_alive_at_once() -> None:
    over = {"child": child(result="Failed"), "pods": (ended_pod(code=203),)}
    waiting = after(over, {"now": NOW + timedelta(hours=1)}, start=running())
    ghost = pod(1, name="ghost", uid="ghost")
    decided = plan(replace(waiting, child=None, pods=(ghost,)))
    assert decided.actions == ()


def test_an_attempt_with_a_live_pod_is_not_over_though_its_child_says_so() -> None:
    decided = plan(replace(running(), child=child(result="Failed"), pods=(pod(),)))
    assert decided.status.attempts[0].ended is None


def test_a_job_that_is_being_deleted_is_left_to_garbage_collection() -> None:
    going = replace(running(), job=replace(running().job, deleting=True))
    decided = plan(going)
    assert decided.actions == ()
    assert decided.status == going.status
