"""What must be true before an attempt's child is made: asked of the API server, not of caches."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from anneal_operator.api.names import attempt_name, run_config_name
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.run_config import RunConfig
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.status import Attempt, FineTuneJobStatus
from anneal_operator.children import Children
from anneal_operator.errors import (
    AlreadyExists,
    ChildRefused,
    EarlierPodAlive,
    Forbidden,
    NotFound,
    OperatorError,
)
from anneal_operator.kube import Object, Selector
from anneal_operator.manifests import ca_config_map_name, run_config_map
from anneal_operator.observation import Input, Job, Refusal
from anneal_operator.resources import CONFIG_MAPS, JOBS, PODS, Resource
from anneal_operator.settings import Settings
from anneal_operator.store import Store
from anneal_operator.stored_config import digest_of, run_config
from anneal_operator.workqueue import Key

JOB = Job(
    namespace="team-a",
    name="bot",
    uid="1f2e3d4c-0000-4000-8000-000000000000",
    generation=1,
    created=datetime(2026, 11, 21, tzinfo=UTC),
    resource_version="1",
)
SPEC = FineTuneJobSpec.parse(
    {
        "model": {"uri": "hf://org/model", "revision": "0" * 40},
        "dataset": {"uri": "s3://team-data/support.jsonl"},
    }
)
PROFILE = FineTuneProfileSpec.parse(
    {
        "images": {"trainer": "trainer"},
        "storage": {"outputURI": "s3://models", "allowedReadURIs": ["s3://team-data"]},
        "models": {"allowedURIs": ["hf://org"]},
        "tracking": {"uri": "http://mlflow:5000"},
    }
)
RELEASE = "anneal.anneal-system"
CONFIG = run_config_name(JOB.name, JOB.uid)
CHILD = attempt_name(JOB.name, JOB.uid, 2)


class ObjectApi:
    """An API server that keeps objects by kind and name."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.failure: OperatorError | None = None

    async def create(self, resource: Resource, body: Object, *, namespace: str) -> Object:
        key = (resource.kind, str(body["metadata"]["name"]))
        if key in self.objects:
            raise AlreadyExists("it is there", status=409)
        if self.failure is not None and resource is JOBS:
            raise self.failure
        self.objects[key] = json.loads(json.dumps(body))
        self.objects[key]["metadata"]["uid"] = "-".join(key)
        return self.objects[key]

    async def get(self, resource: Resource, name: str, *, namespace: str) -> Object:
        if (resource.kind, name) not in self.objects:
            raise NotFound("there is none", status=404)
        return self.objects[resource.kind, name]

    async def apply(self, resource: Resource, body: Object, **_: Any) -> Object:
        self.objects[resource.kind, str(body["metadata"]["name"])] = body
        return body

    async def list_all(self, resource: Resource, *, selector: Selector) -> tuple[Object, ...]:
        return tuple(obj for (kind, _), obj in self.objects.items() if kind == resource.kind)

    def names(self, resource: Resource) -> list[str]:
        return [name for kind, name in self.objects if kind == resource.kind]

    def add_pod(self, name: str, *, attempt: int, phase: str) -> None:
        labels = {"anneal.dev/attempt": str(attempt)}
        meta = {"name": name, "uid": name, "namespace": JOB.namespace, "labels": labels}
        self.objects[PODS.kind, name] = {"metadata": meta, "status": {"phase": phase}}


@pytest.fixture
def api() -> ObjectApi:
    return ObjectApi()


@pytest.fixture
def children(api: ObjectApi, tmp_path: Path) -> Children:
    (tmp_path / "ca.crt").write_text("PEM")
    settings = Settings(
        release="anneal",
        pod_namespace="anneal-system",
        pod_name="p",
        progress_url="https://progress",
        progress_tls_dir=tmp_path,
    )
    return Children(
        kube=api,  # type: ignore[arg-type]
        settings=settings,
        jobs=Store(),
        pods=Store(),
        owner_references=lambda: (),
    )


def config_of(job: Job, *, output: str = "s3://models/bot") -> RunConfig:
    """What the operator of this test writes."""
    return run_config(job, spec=SPEC, profile=PROFILE, output_uri=output, release=RELEASE)


async def create(
    children: Children,
    *,
    job: Job = JOB,
    output: str = "s3://models/bot",
    config_digest: str | None = None,
) -> None:
    await children.create(
        job,
        spec=SPEC,
        profile=PROFILE,
        attempt=2,
        run_id="r",
        output_uri=output,
        config_digest=config_digest or digest_of(config_of(job, output=output).to_text()),
    )


def lose_child(api: ObjectApi, children: Children) -> None:
    """The Job was never made, or is gone: only its config is left."""
    del api.objects[JOBS.kind, CHILD]
    children.jobs.remove(Key(JOB.namespace, CHILD))


async def refusal_seen(children: Children) -> Refusal | None:
    """What the next decision is told, with the intent of attempt 2 on record."""
    seen = Input(
        now=JOB.created,
        job=JOB,
        spec=SPEC,
        status=FineTuneJobStatus(attempt=2, attempts=(Attempt(number=2, child=CHILD),)),
        profile=None,
        known_tracking_uris=(),
    )
    return (await children.observe(seen, unfinished=True)).refusal


async def test_a_config_that_is_there_already_is_used_again(
    api: ObjectApi, children: Children
) -> None:
    await create(children)
    lose_child(api, children)
    await create(children)
    assert api.names(JOBS) == [CHILD]
    assert await refusal_seen(children) is None


def older_text() -> str:
    """job.json by an operator with another default, one field less and another layout."""
    data = config_of(JOB).to_data()
    data["pipeline"]["tuning"]["lora"]["rank"] = 8
    del data["hub"]
    return json.dumps(data)


async def test_what_an_older_operator_wrote_is_what_the_job_goes_on_by(
    api: ObjectApi, children: Children
) -> None:
    text = older_text()
    assert RunConfig.model_validate_json(text) != config_of(JOB)
    body = run_config_map(JOB, config=config_of(JOB), release=RELEASE)
    body["data"]["job.json"] = text
    await api.create(CONFIG_MAPS, body, namespace=JOB.namespace)
    await create(children, config_digest=digest_of(text))
    assert api.names(JOBS) == [CHILD]
    assert api.objects[CONFIG_MAPS.kind, CONFIG]["data"]["job.json"] == text


async def test_an_older_operators_config_that_is_gone_is_not_replaced_by_another(
    api: ObjectApi, children: Children
) -> None:
    with pytest.raises(ChildRefused, match="is gone, and this version of the operator would"):
        await create(children, config_digest=digest_of(older_text()))
    assert api.names(JOBS) == api.names(CONFIG_MAPS)[1:] == []
    refusal = await refusal_seen(children)
    assert refusal is not None
    assert refusal.is_config_missing


def another_dataset(config_map: Object) -> None:
    text = config_map["data"]["job.json"]
    config_map["data"]["job.json"] = text.replace("s3://team-data", "s3://secret-data")


def another_layout(config_map: Object) -> None:
    """Nothing that is immutable and ours comes to differ, be it by a space."""
    config_map["data"]["job.json"] += " "


def no_json(config_map: Object) -> None:
    config_map["data"] = {"job.json": "{"}


def empty(config_map: Object) -> None:
    del config_map["data"]


def changeable(config_map: Object) -> None:
    del config_map["immutable"]


def another_owner(config_map: Object) -> None:
    config_map["metadata"]["ownerReferences"][0]["uid"] = "somebody-else"


def not_in_charge(config_map: Object) -> None:
    config_map["metadata"]["ownerReferences"][0]["controller"] = False


@pytest.mark.parametrize(
    "forge",
    [another_dataset, another_layout, no_json, empty, changeable, another_owner, not_in_charge],
)
async def test_somebody_elses_config_is_never_trained_by(
    api: ObjectApi, children: Children, forge: Any
) -> None:
    await create(children)
    lose_child(api, children)
    forge(api.objects[CONFIG_MAPS.kind, CONFIG])
    with pytest.raises(ChildRefused):
        await create(children)
    assert api.names(JOBS) == []
    refusal = await refusal_seen(children)
    assert refusal is not None
    assert (refusal.reason, refusal.is_config_missing) == ("PodRefused", False)
    assert f"ConfigMap {CONFIG}" in refusal.message

    del api.objects[CONFIG_MAPS.kind, CONFIG]
    await create(children)
    assert api.names(JOBS) == [CHILD]


async def test_somebody_elses_job_under_the_childs_name_is_told_of(
    api: ObjectApi, children: Children
) -> None:
    meta = {"name": CHILD, "namespace": JOB.namespace, "uid": "x"}
    api.objects[JOBS.kind, CHILD] = {"metadata": meta}
    with pytest.raises(ChildRefused):
        await create(children)
    refusal = await refusal_seen(children)
    assert refusal is not None
    assert f"Job {CHILD} exists and does not belong to this job" in refusal.message


async def test_a_config_too_large_for_the_api_server_is_told_of(
    api: ObjectApi, children: Children
) -> None:
    with pytest.raises(ChildRefused):
        await create(children, output="s3://x" * 100_000)
    assert api.names(JOBS) == []
    refusal = await refusal_seen(children)
    assert refusal is not None
    assert "more than 524288" in refusal.message


async def test_no_child_while_a_pod_of_an_earlier_attempt_runs(
    api: ObjectApi, children: Children
) -> None:
    api.add_pod("ghost", attempt=1, phase="Running")
    with pytest.raises(EarlierPodAlive):
        await create(children)
    assert api.names(JOBS) == []
    refusal = await refusal_seen(children)
    assert refusal is not None
    assert (refusal.reason, "pod ghost of attempt 1" in refusal.message) == ("Creating", True)

    api.add_pod("ghost", attempt=1, phase="Failed")
    await create(children)
    assert api.names(JOBS) == [CHILD]


async def test_a_quota_is_told_of_until_the_job_is_forgotten(
    api: ObjectApi, children: Children
) -> None:
    api.failure = Forbidden("exceeded quota", status=403)
    with pytest.raises(Forbidden):
        await create(children)
    refusal = await refusal_seen(children)
    assert refusal is not None
    assert "The API server refuses the attempt: exceeded quota" in refusal.message
    children.forget(JOB.uid)
    assert await refusal_seen(children) is None


async def test_each_job_has_its_own_config(api: ObjectApi, children: Children) -> None:
    await create(children)
    other = replace(JOB, name="bot", uid="2f2e3d4c-0000-4000-8000-000000000000")
    await create(children, job=other)
    assert len([name for name in api.names(CONFIG_MAPS) if name.endswith("-config")]) == 2


async def test_a_rotated_ca_reaches_the_jobs_namespace(
    api: ObjectApi, children: Children, tmp_path: Path
) -> None:
    name = ca_config_map_name(RELEASE)
    for pem in ("PEM", "NEW PEM"):
        (tmp_path / "ca.crt").write_text(pem)
        await children.apply_ca(JOB.namespace)
        assert api.objects[CONFIG_MAPS.kind, name]["data"] == {"ca.crt": pem}
