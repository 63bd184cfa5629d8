"""The MLflow run, made once whatever happens, and closed when nobody is left."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest
from tests.integration.operator.cluster import Cluster, kubectl
from tests.integration.operator.eventually import eventually
from tests.integration.operator.mlflow_server import Mlflow
from tests.integration.operator.operator_process import Operators

from anneal_operator.errors import TrackingRejected
from anneal_operator.mlflow_rest import MlflowServer
from anneal_operator.observation import Job
from anneal_operator.settings import TrackingServer
from anneal_operator.tracking import ensure_run, run_tags


@pytest.fixture
async def server(mlflow_uri: str) -> AsyncIterator[MlflowServer]:
    async with aiohttp.ClientSession() as session:
        yield MlflowServer(session, TrackingServer(uri=mlflow_uri))


def job(uid: str) -> Job:
    now = datetime.now(tz=UTC)
    return Job(
        namespace="team-a",
        name="support-bot",
        uid=uid,
        generation=1,
        created=now,
        resource_version="1",
    )


async def test_simultaneous_creates_leave_one_run(server: MlflowServer, mlflow: Mlflow) -> None:
    mine = job("11111111-0000-4000-8000-000000000000")
    tags = run_tags(mine, release="anneal.test", extra={"team": "search"})
    found = await asyncio.gather(
        *(ensure_run(server, job=mine, experiment="races", tags=tags) for _ in range(4))
    )
    again = await ensure_run(server, job=mine, experiment="races", tags=tags)
    (run,) = mlflow.runs(mine.uid)
    assert again.run_id == run.info.run_id
    assert run.info.run_id in {f.run_id for f in found}
    assert run.data.tags["anneal.release"] == "anneal.test"
    assert run.data.tags["team"] == "search"


async def test_a_users_tags_do_not_replace_ours() -> None:
    tags = run_tags(job("u"), release="r", extra={"anneal.job.uid": "stolen"})
    assert tags["anneal.job.uid"] == "u"


async def test_a_version_without_a_digest_has_none(server: MlflowServer) -> None:
    assert await server.version_tag("no such model", "1", tag="anneal.artefact.digest") is None


async def test_a_deleted_experiment_is_named(server: MlflowServer, mlflow: Mlflow) -> None:
    mlflow.client.delete_experiment(mlflow.client.create_experiment("gone"))
    with pytest.raises(TrackingRejected, match="'gone'"):
        await server.experiment_id("gone")


@pytest.mark.parametrize(
    ("tags", "experiment", "field"),
    [({"mlflow.runName": "another"}, "words", "tags"), ({}, "e" * 600, "experiment")],
    ids=["tag", "experiment name"],
)
async def test_words_that_mlflow_refuses_are_named_by_their_field(
    server: MlflowServer, tags: dict[str, str], experiment: str, field: str
) -> None:
    mine = job("22222222-0000-4000-8000-000000000000")
    with pytest.raises(TrackingRejected, match=f"refuses spec.tracking.{field}: "):
        await ensure_run(server, job=mine, experiment=experiment, tags=tags)


async def test_the_run_of_a_deleted_job_is_closed_as_killed(
    cluster: Cluster, operators: Operators, mlflow: Mlflow
) -> None:
    operator = operators()
    made = await cluster.apply_job()
    await cluster.until_child(1)
    operator.stop()
    kubectl(cluster.kubeconfig, "delete", "ftj", "support-bot", "-n", cluster.namespace)
    operator.start()

    async def closed() -> bool:
        (run,) = await asyncio.to_thread(mlflow.runs, made["metadata"]["uid"])
        return str(run.info.status) == "KILLED"

    await eventually(closed, what="the orphan to be closed")
