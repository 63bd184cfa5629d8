"""Claims on namespaces: held, shared by replicas, never taken from a live release."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.operator_runtime.conftest import LeaseApi

from anneal_operator.claims import Claims
from anneal_operator.errors import OverlappingInstall
from anneal_operator.kube import Selector
from anneal_operator.resources import Resource
from anneal_operator.settings import Settings

pytestmark = pytest.mark.looptime
START = datetime(2026, 11, 21, tzinfo=UTC)


class Listing(LeaseApi):
    """The Lease, also as a list."""

    async def list_all(self, resource: Resource, *, selector: Selector) -> tuple[object, ...]:
        return (self.lease,) if self.lease else ()


def claims(api: LeaseApi, *, release: str) -> Claims:
    settings = Settings(
        release=release,
        pod_namespace="system",
        pod_name="operator-0",
        progress_url="https://progress:8443",
        watch_namespaces=("team-a",),
    )
    loop = asyncio.get_running_loop()
    began = loop.time()
    return Claims(
        kube=api,  # type: ignore[arg-type]
        settings=settings,
        now=lambda: START + timedelta(seconds=loop.time() - began),
        owner_references=lambda: (),
    )


async def test_many_workers_claim_a_namespace_together() -> None:
    mine = claims(Listing(), release="one")
    assert await asyncio.gather(*(mine.claim("team-a") for _ in range(8))) == [True] * 8


async def test_a_claim_is_ours_all_the_while_it_is_renewed() -> None:
    api = Listing()
    mine = claims(api, release="one")
    assert await mine.claim("team-a")
    renewing = asyncio.create_task(mine.renew())
    for _ in range(300):
        await asyncio.sleep(1)
        assert await mine.claim("team-a")
    assert api.updates == 4 or api.updates == 5
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)


async def test_a_live_release_is_not_overlapped_and_a_dead_one_is_replaced() -> None:
    api = Listing()
    first, second = claims(api, release="one"), claims(api, release="two")
    assert await first.claim("team-a")
    assert not await second.claim("team-a")
    with pytest.raises(OverlappingInstall, match=r"one\.system.*watch\.namespaces"):
        await second.check_at_start()
    await asyncio.sleep(200)
    await second.check_at_start()
    assert await second.claim("team-a")


async def test_a_claim_that_was_lost_is_given_up() -> None:
    api = Listing()
    first = claims(api, release="one")
    assert await first.claim("team-a")
    assert api.lease is not None
    api.lease["spec"]["holderIdentity"] = "two.system"
    api.lease["spec"]["renewTime"] = "2026-11-21T00:01:00.000000Z"
    renewing = asyncio.create_task(first.renew())
    await asyncio.sleep(70)
    assert not await first.claim("team-a")
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)
