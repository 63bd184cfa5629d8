"""From `kubectl apply` to a child Job, and what the status says on the way."""

from tests.integration.operator.conftest import Cluster, Operators


async def test_the_smallest_job_becomes_one_child(cluster: Cluster, operators: Operators) -> None:
    operators()
    await cluster.apply_job()
    child = await cluster.until_child(1)
    status = await cluster.status()

    assert (await cluster.condition("Accepted"))["status"] == "True"
    assert status["attempts"][0]["child"] == child["metadata"]["name"]
    assert status["phase"] == "Starting"
    assert len(await cluster.children()) == 1
