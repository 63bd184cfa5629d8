"""The decisions of finetunejob.md, case by case: how a job begins and what is seen of it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.controller.conftest import (
    JOB,
    NOW,
    RUN,
    after,
    child,
    condition,
    ended_pod,
    pod,
    profile_spec,
    report,
    running,
    seen,
    spec,
)

from anneal_operator.api.reasons import ConditionType, Phase, Reason
from anneal_operator.api.status import CheckpointStatus
from anneal_operator.conditions import find
from anneal_operator.draft import (
    CreateChild,
    EnsureRun,
)
from anneal_operator.observation import Refusal, Tracking
from anneal_operator.plan import plan
from anneal_operator.stored_config import digest_of, run_config


def test_a_new_job_is_accepted_and_its_first_child_intended() -> None:
    decided = plan(seen())
    assert condition(decided, ConditionType.ACCEPTED) == ("True", "Accepted")
    assert decided.actions == (CreateChild(1),)
    assert decided.status.attempt == 1
    assert decided.status.attempts[0].child == "support-bot-1f2e3d4c-1"
    assert decided.status.output_uri == "s3://models/team-a/support-bot-1f2e3d4c"
    assert decided.status.mlflow is not None
    assert decided.status.mlflow.run_id == RUN.run_id


def test_what_the_job_begins_with_is_on_record_and_stays() -> None:
    begun = plan(seen(release="ours")).status
    config = run_config(
        JOB, spec=spec(), profile=profile_spec(), output_uri=str(begun.output_uri), release="ours"
    )
    assert begun.config_digest == digest_of(config.to_text())

    over = {"child": child(result="Failed"), "pods": (ended_pod(code=203),)}
    later = after(
        over,
        {"now": NOW + timedelta(hours=1)},
        {"release": "a newer one"},
        start=running(release="ours"),
    )
    decided = plan(replace(later, child=None, pods=()))
    assert decided.actions == (CreateChild(2),)
    assert decided.status.config_digest == begun.config_digest


MISSING = Refusal(reason=Reason.POD_REFUSED, message="ConfigMap x is gone.", is_config_missing=True)


@pytest.mark.parametrize(
    ("steps", "is_recorded_anew"),
    [
        pytest.param(({},), True, id="the operator was replaced before it stored anything"),
        pytest.param(
            ({}, {"spec": spec(suspend=True)}, {"spec": spec()}, {}),
            True,
            id="and the job was suspended and resumed since",
        ),
        pytest.param(
            ({}, {"child": child()}, {"child": None}),
            False,
            id="a child was made by it",
        ),
        pytest.param(({}, {"pods": (ended_pod(code=1),)}), False, id="a pod has run by it"),
    ],
)
def test_a_config_that_was_recorded_and_never_stored_binds_no_later_operator(
    steps: tuple[dict[str, Any], ...], is_recorded_anew: bool
) -> None:
    begun = after(*steps, {"release": "a newer one"}, start=seen(release="ours"))
    assert plan(begun).status.config_digest == begun.status.config_digest
    decided = plan(replace(begun, refusal=MISSING))
    config = run_config(
        JOB,
        spec=spec(),
        profile=profile_spec(),
        output_uri=str(begun.status.output_uri),
        release="a newer one",
    )
    want = digest_of(config.to_text()) if is_recorded_anew else begun.status.config_digest
    assert decided.status.config_digest == want
    if is_recorded_anew:
        assert decided.actions == (CreateChild(decided.status.attempt),)
        provisioned = find(decided.status.conditions, ConditionType.PROVISIONED)
        assert provisioned is not None
        assert MISSING.message not in provisioned.message


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


def test_a_child_that_somebody_deleted_is_not_made_again_under_its_number() -> None:
    decided = plan(after({"child": None, "pods": ()}, start=running()))
    assert decided.status.attempts[0].attempt_class == "Infrastructure"
    assert decided.status.attempts[0].ended is not None


def test_nor_is_one_whose_pod_was_never_seen() -> None:
    decided = plan(after({}, {"child": child()}, {"child": None}))
    assert decided.status.attempts[0].ended is not None
    assert CreateChild(1) not in decided.actions


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


TAGS = (
    "MLflow refuses spec.tracking.tags: Invalid value 'a b=c'; correct it and apply the job again"
)


def test_words_that_mlflow_refuses_end_the_job_in_one_sentence() -> None:
    decided = plan(seen(tracking=Tracking(error=TAGS, fault="Rejected")))
    assert condition(decided, ConditionType.FAILED) == ("True", "InvalidSpec")
    failed = find(decided.status.conditions, ConditionType.FAILED)
    assert failed is not None
    assert failed.message == f"{TAGS}."
    assert decided.actions == ()
    again = plan(seen(status=decided.status, tracking=Tracking(error=TAGS, fault="Rejected")))
    assert again.actions == ()


def test_an_mlflow_that_refuses_the_operator_is_not_called_silent() -> None:
    decided = plan(seen(tracking=Tracking(error="answered 403: no", fault="Denied")))
    assert condition(decided, ConditionType.PROVISIONED) == ("False", "TrackingUnreachable")
    provisioned = find(decided.status.conditions, ConditionType.PROVISIONED)
    assert provisioned is not None
    message = provisioned.message
    assert "answered 403: no" in message
    assert "the administrator must correct" in message
    assert "does not answer" not in message
    assert decided.actions == (EnsureRun(),)


def test_what_stands_in_the_way_of_the_child_is_told() -> None:
    refusal = Refusal(reason=Reason.POD_REFUSED, message="ConfigMap x is not this job's.")
    decided = plan(after({"refusal": refusal}))
    provisioned = find(decided.status.conditions, ConditionType.PROVISIONED)
    assert provisioned is not None
    assert (provisioned.reason, provisioned.message) == ("PodRefused", refusal.message)
    assert decided.actions == (CreateChild(1),)
