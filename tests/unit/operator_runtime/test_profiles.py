"""What a profile's Ready condition says."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from anneal_operator.kube import Object
from anneal_operator.profiles import ProfileReconciler
from anneal_operator.resources import Resource
from anneal_operator.settings import Settings, TrackingServer
from anneal_operator.store import Store
from anneal_operator.workqueue import Key

KNOWN = "http://mlflow.anneal:5000"


class StatusApi:
    """Keeps the statuses that are written."""

    def __init__(self) -> None:
        self.written: list[Object] = []

    async def apply(self, resource: Resource, body: Object, **_: Any) -> Object:
        self.written.append(body["status"])
        return body


@pytest.mark.parametrize(
    ("uri", "want", "named"),
    [
        pytest.param(KNOWN, ("True", "Ready"), "can use", id="a server the operator was told of"),
        pytest.param(
            "http://another:5000",
            ("False", "TrackingNotKnown"),
            "http://another:5000",
            id="another server",
        ),
    ],
)
async def test_a_profile_is_ready_where_the_operator_knows_its_mlflow(
    uri: str, want: tuple[str, str], named: str
) -> None:
    api, profiles = StatusApi(), Store()
    spec = {"images": {"trainer": "trainer"}, "tracking": {"uri": uri}}
    meta = {"name": "default", "uid": "u", "resourceVersion": "1", "generation": 1}
    profiles.put({"metadata": meta, "spec": spec})
    reconciler = ProfileReconciler(
        kube=api,  # type: ignore[arg-type]
        settings=Settings(
            release="anneal",
            pod_namespace="anneal-system",
            pod_name="p",
            progress_url="https://progress",
            progress_tls_dir=Path("/nowhere"),
            tracking_servers=(TrackingServer(uri=KNOWN),),
        ),
        profiles=profiles,
        now=lambda: datetime(2026, 11, 21, tzinfo=UTC),
    )
    await reconciler.reconcile(Key("", "default"))
    (status,) = api.written
    (ready,) = status["conditions"]
    assert (ready["status"], ready["reason"]) == want
    assert named in ready["message"]
