"""Killed, doubled and overlapping operators: never two children for one attempt."""

import asyncio
import random

import aiohttp
from tests.integration.operator.cluster import Cluster
from tests.integration.operator.eventually import eventually
from tests.integration.operator.operator_process import Operators


async def test_an_operator_killed_at_random_moments_makes_one_child_per_attempt(
    cluster: Cluster, operators: Operators
) -> None:
    moments = random.Random(7)
    jobs = [f"bot-{number}" for number in range(6)]
    operator = operators()
    for name in jobs:
        await cluster.apply_job(name=name, retry={"backoffSeconds": 0, "infrastructure": 1})
        await asyncio.sleep(moments.uniform(0.0, 0.6))
        operator.kill()
        operator.start()

    async def all_started() -> bool:
        return len(await cluster.children()) == len(jobs)

    await eventually(all_started, what="a child for each job")
    for child in await cluster.children():
        await cluster.end_pod(await cluster.start_pod(child), code=203)
        await cluster.end_child(child, result="Failed")
        await asyncio.sleep(moments.uniform(0.0, 0.4))
        operator.kill()
        operator.start()

    async def all_repeated() -> bool:
        return len(await cluster.children()) >= 2 * len(jobs)

    await eventually(all_repeated, what="a second child for each job")
    attempts = sorted(
        (c["metadata"]["labels"]["anneal.dev/job"], c["metadata"]["labels"]["anneal.dev/attempt"])
        for c in await cluster.children()
    )
    assert attempts == sorted((name, number) for name in jobs for number in ("1", "2"))


async def test_of_two_replicas_one_acts_and_the_other_takes_over(
    cluster: Cluster, operators: Operators, trainer
) -> None:
    first = operators()
    await cluster.apply_job(name="before")
    child = await cluster.until_child(1)
    second = operators()
    pod = await cluster.start_pod(child)
    await cluster.until_condition("Running", "True", name="before")

    # A report to the standby reaches the leader.
    reporter = await trainer(pod, operator=second)

    async def forwarded() -> bool:
        try:
            code, _ = await reporter.post(percent=10, step=5, totalSteps=50)
        except aiohttp.ClientConnectorError:
            return False
        return code == 200

    await eventually(forwarded, what="a report through the standby")
    assert "leader_elected" not in second.lines()

    first.kill()
    await cluster.apply_job(name="after")

    async def taken_over() -> bool:
        return len(await cluster.children()) == 2

    await eventually(taken_over, what="the standby to take over")
    assert "leader_elected" in second.lines()


async def test_a_stopped_leader_gives_its_lease_up(cluster: Cluster, operators: Operators) -> None:
    operator = operators()
    await cluster.apply_job()
    await cluster.until_child(1)
    assert operator.stop() == 0
    assert "leader_released" in operator.lines()


async def test_an_overlapping_install_is_refused_with_the_remedy(
    cluster: Cluster, operators: Operators
) -> None:
    operators()
    await cluster.apply_job()
    await cluster.until_child(1)
    other = operators(ANNEAL_RELEASE="second")
    assert other.process is not None
    assert await asyncio.to_thread(other.process.wait, 60) == 1
    assert "already served by the Anneal release anneal." in other.lines()
    assert "watch.namespaces" in other.lines()


async def test_a_restart_writes_nothing(cluster: Cluster, operators: Operators) -> None:
    operator = operators()
    await cluster.apply_job()
    child = await cluster.until_child(1)
    await cluster.end_pod(await cluster.start_pod(child), code=65)
    await cluster.end_child(child, result="Failed")

    async def closed() -> str:
        status = await cluster.status()
        done = (status.get("mlflow") or {}).get("runClosed")
        return (await cluster.job())["metadata"]["resourceVersion"] if done else ""

    before = await eventually(closed, what="the end of the job")
    operator.stop()
    operator.start()
    await cluster.apply_job(name="next")

    async def next_started() -> bool:
        return len(await cluster.children()) == 2

    await eventually(next_started, what="the next job's child")
    assert (await cluster.job())["metadata"]["resourceVersion"] == before
