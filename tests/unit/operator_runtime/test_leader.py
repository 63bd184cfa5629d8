"""The Lease: taken, kept, lost in time, handed over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from tests.unit.operator_runtime.conftest import LeaseApi

from anneal_operator.errors import Conflict, LeadershipLost, Unreachable
from anneal_operator.leader import Elector

pytestmark = pytest.mark.looptime


@dataclass
class Candidate:
    """An elector and when its work ran."""

    elector: Elector
    stop: asyncio.Event
    started: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    result: BaseException | None = None

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        self.started.append(loop.time())
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(loop.time())


@asynccontextmanager
async def campaigning(
    api: LeaseApi, *names: str, now: datetime = datetime(2026, 11, 21, tzinfo=UTC)
) -> AsyncIterator[list[Candidate]]:
    candidates, tasks = [], []
    for name in names:
        elector = Elector(
            kube=api,  # type: ignore[arg-type]
            namespace="anneal",
            name="leader",
            identity=name,
            clock=asyncio.get_running_loop().time,
            random=lambda: 0.5,
            now=lambda: now,
        )
        candidate = Candidate(elector, asyncio.Event())
        candidates.append(candidate)
        tasks.append(asyncio.create_task(_run(candidate)))
        await asyncio.sleep(0.1)
    try:
        yield candidates
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run(candidate: Candidate) -> None:
    try:
        await candidate.elector.run(candidate.work, stop=candidate.stop)
    except LeadershipLost as error:
        candidate.result = error


async def test_one_of_two_leads_and_goes_on_leading(lease_api: LeaseApi) -> None:
    async with campaigning(lease_api, "a", "b") as (a, b):
        await asyncio.sleep(300)
        assert len(a.started) == 1
        assert not a.ended
        assert not b.started
        assert b.elector.holder == "a"


async def test_a_silent_leader_is_replaced_after_the_lease_and_no_sooner(
    lease_api: LeaseApi,
) -> None:
    async with campaigning(lease_api, "b") as (b,):
        lease_api.lease = None
    lease_api._stored({"metadata": {"name": "leader"}, "spec": {"holderIdentity": "dead"}})
    began = asyncio.get_running_loop().time()
    async with campaigning(lease_api, "b") as (b,):
        await asyncio.sleep(14)
        assert not b.started
        await asyncio.sleep(5)
        assert 15 < b.started[0] - began < 19
        assert lease_api.lease is not None
        assert lease_api.lease["spec"]["leaseTransitions"] == 1


@pytest.mark.parametrize("year", [1999, 2099])
async def test_wall_clocks_do_not_matter(lease_api: LeaseApi, year: int) -> None:
    renewed = f"{year}-01-01T00:00:00.000000Z"
    lease_api._stored(
        {
            "metadata": {"name": "leader"},
            "spec": {"holderIdentity": "other", "renewTime": renewed, "leaseDurationSeconds": 15},
        }
    )
    async with campaigning(lease_api, "b") as (b,):
        await asyncio.sleep(14)
        assert not b.started
        await asyncio.sleep(5)
        assert b.started


@pytest.mark.parametrize("how", ["hangs", "refuses", "conflicts"])
async def test_a_leader_that_cannot_renew_stops_before_another_can_start(
    lease_api: LeaseApi, how: str
) -> None:
    async with campaigning(lease_api, "a") as (a,):
        await asyncio.sleep(60)
        lost_at = asyncio.get_running_loop().time()
        if how == "hangs":
            lease_api.hanging = True
        else:
            lease_api.failure = (
                Unreachable("refused") if how == "refuses" else Conflict("stale", status=409)
            )
        await asyncio.sleep(30)
        assert isinstance(a.result, LeadershipLost)
        assert 8 <= a.ended[0] - lost_at <= 12.5
        assert not a.elector.leading


async def test_a_short_outage_costs_nothing(lease_api: LeaseApi) -> None:
    async with campaigning(lease_api, "a") as (a,):
        await asyncio.sleep(10)
        lease_api.failure = Unreachable("refused")
        await asyncio.sleep(6)
        lease_api.failure = None
        await asyncio.sleep(60)
        assert not a.ended


async def test_a_lease_that_somebody_else_took_ends_the_work(lease_api: LeaseApi) -> None:
    async with campaigning(lease_api, "a") as (a,):
        await asyncio.sleep(10)
        lease_api._stored({"metadata": {"name": "leader"}, "spec": {"holderIdentity": "thief"}})
        await asyncio.sleep(5)
        assert isinstance(a.result, LeadershipLost)
        assert lease_api.holder == "thief"


async def test_stopping_hands_over_at_once(lease_api: LeaseApi) -> None:
    async with campaigning(lease_api, "a", "b") as (a, b):
        await asyncio.sleep(20)
        a.stop.set()
        await asyncio.sleep(5)
        assert a.ended
        assert a.result is None
        assert b.started
        assert b.started[0] >= a.ended[0]


async def test_stopping_a_standby_leaves_the_leader_alone(lease_api: LeaseApi) -> None:
    async with campaigning(lease_api, "a", "b") as (_, b):
        await asyncio.sleep(20)
        b.stop.set()
        await asyncio.sleep(1)
        assert lease_api.holder == "a"
