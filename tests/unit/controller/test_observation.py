"""Reading the API server's objects, and the words for what they show."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.controller.conftest import outcome, pod

from anneal_operator.api.reasons import Reason
from anneal_operator.observation import Pod, read_child, read_outcome, read_pod
from anneal_operator.waiting import waiting_for


def raw_pod(status: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "uid": "u", "labels": {"anneal.dev/attempt": "2"}},
        "spec": {"nodeName": "node-1"},
        "status": status,
    }


def container(state: dict[str, Any]) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "trainer", "state": state}]}


def test_a_pod_whose_container_ended_carries_its_outcome() -> None:
    said = outcome("User")
    ended = {
        "exitCode": 65,
        "reason": "Error",
        "message": json.dumps(said.to_data()),
        "startedAt": "2026-11-21T11:00:00Z",
        "finishedAt": "2026-11-21T11:10:00Z",
    }
    read = read_pod(
        raw_pod({"phase": "Failed", **container({"terminated": ended})}),
        attempt_label="anneal.dev/attempt",
    )
    assert read.over
    assert read.attempt == "2"
    assert read.termination is not None
    assert (read.termination.exit_code, read.termination.outcome) == (65, said)
    assert read.started is not None


@given(st.text(max_size=200) | st.binary(max_size=50).map(repr))
def test_a_termination_log_of_anything_is_no_outcome(text: str) -> None:
    assert read_outcome(text) is None


@pytest.mark.parametrize(
    ("conditions", "want"),
    [
        pytest.param([], "", id="running"),
        pytest.param([{"type": "Suspended", "status": "True"}], "", id="something else"),
        pytest.param([{"type": "Failed", "status": "False"}], "", id="not true"),
        pytest.param([{"type": "FailureTarget", "status": "True"}], "", id="about to fail"),
        pytest.param([{"type": "Complete", "status": "True"}], "Complete", id="complete"),
        pytest.param([{"type": "Failed", "status": "True"}], "Failed", id="failed"),
    ],
)
def test_a_child_is_over_when_its_condition_says_so(
    conditions: list[dict[str, str]], want: str
) -> None:
    job = {"metadata": {"name": "j", "uid": "u"}, "status": {"conditions": conditions}}
    assert read_child(job).result == want


WAITS = [
    pytest.param(None, "", Reason.CREATING, "to be made", id="no pod yet"),
    pytest.param(None, "violates PodSecurity", Reason.POD_REFUSED, "PodSecurity", id="refused"),
    pytest.param(
        pod(phase="Pending", node=None, started=None, unschedulable="0/1 nodes: no GPU"),
        "",
        Reason.UNSCHEDULABLE,
        "no GPU",
        id="no room",
    ),
    pytest.param(
        pod(phase="Pending", started=None, waiting_reason="ImagePullBackOff"),
        "",
        Reason.IMAGE_PULL,
        "trainer:1",
        id="image",
    ),
    pytest.param(
        pod(
            phase="Pending",
            started=None,
            waiting_reason="CreateContainerConfigError",
            waiting_message='secret "s3" not found',
        ),
        "",
        Reason.VOLUME_MOUNT,
        'secret "s3" not found',
        id="configuration",
    ),
    pytest.param(
        pod(phase="Pending", started=None, waiting_reason="ContainerCreating"),
        'MountVolume.SetUp failed: secret "s3" not found',
        Reason.VOLUME_MOUNT,
        'secret "s3" not found',
        id="mount",
    ),
    pytest.param(
        pod(phase="Pending", started=None, waiting_reason="ContainerCreating"),
        "",
        Reason.CONTAINER_CREATING,
        "node-1",
        id="being prepared",
    ),
]


@pytest.mark.parametrize(("waiting", "hint", "reason", "named"), WAITS)
def test_what_an_attempt_waits_for(
    waiting: Pod | None, hint: str, reason: Reason, named: str
) -> None:
    wait = waiting_for(waiting, hint=hint, image="trainer:1")
    assert wait.reason == reason
    assert named in wait.message
