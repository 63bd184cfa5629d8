"""One Event per change of state, a Warning only where a person should act."""

from dataclasses import replace

from tests.unit.controller.conftest import (
    JOB,
    NOW,
    child,
    ended_pod,
    outcome,
    pod,
    running,
    seen,
    spec,
)

from anneal_operator.api.status import FineTuneJobStatus
from anneal_operator.events import event, notes
from anneal_operator.observation import Input
from anneal_operator.plan import plan


def told(picture: Input) -> list[tuple[str, bool]]:
    """Reason and warning of the events of one decision."""
    return [(n.reason, n.warning) for n in notes(picture.status, plan(picture).status)]


def test_a_new_job() -> None:
    assert told(seen()) == [("Accepted", False), ("Creating", False)]


def test_a_refused_job_warns_once() -> None:
    refused = seen(spec=spec(queue={"name": "team-a"}))
    assert told(refused) == [("NotImplemented", True)]
    assert told(replace(refused, status=plan(refused).status)) == []


def test_a_mistake_of_the_user() -> None:
    over = {
        "child": child(result="Failed"),
        "pods": (ended_pod(code=65, outcome=outcome("User")),),
    }
    assert told(replace(running(), **over)) == [("AttemptEnded", True), ("TestUser", True)]


def test_progress_alone_is_no_event() -> None:
    picture = running()
    later = plan(replace(picture, pods=(pod(node="node-1"),))).status
    assert list(notes(picture.status, later)) == []


def test_the_name_of_an_event_is_made_of_what_it_says() -> None:
    (note, *_) = notes(FineTuneJobStatus(), plan(seen()).status)
    first = event(note, job=JOB, instance="operator-1", now=NOW)
    again = event(note, job=JOB, instance="operator-2", now=NOW)
    assert first["metadata"]["name"] == again["metadata"]["name"]
    assert first["type"] == "Normal"
    assert first["regarding"]["uid"] == JOB.uid
