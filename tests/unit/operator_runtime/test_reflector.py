"""Every kind of outage of section 5 of operator-runtime.md, and what the store shows after it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from tests.unit.operator_runtime.conftest import (
    HANG,
    ScriptedApi,
    bookmark,
    event,
    obj,
    page,
)

from anneal_operator.errors import Gone, ServerFailure, Throttled, Unreachable
from anneal_operator.kube import Selector
from anneal_operator.reflector import Reflector
from anneal_operator.resources import PODS
from anneal_operator.store import Store
from anneal_operator.workqueue import Key

pytestmark = pytest.mark.looptime


@asynccontextmanager
async def reflecting(api: ScriptedApi) -> AsyncIterator[tuple[Reflector, list[tuple[str, bool]]]]:
    """A running reflector, and the changes it told of: name, and whether it is still there."""
    store = Store()
    told: list[tuple[str, bool]] = []

    def listener(key: Key, before: Any, after: Any) -> None:
        told.append((key.name, after is not None))

    store.listen(listener)
    reflector = Reflector(
        kube=api,  # type: ignore[arg-type]
        resource=PODS,
        selector=Selector(),
        store=store,
        clock=asyncio.get_running_loop().time,
        random=lambda: 0.5,
    )
    task = asyncio.create_task(reflector.run())
    try:
        yield reflector, told
        assert not task.done(), "the reflector ended"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_it_lists_in_pages_and_watches_from_the_lists_version() -> None:
    api = ScriptedApi(
        lists=[page(obj("a", 1), version=9, token="next"), page(obj("b", 2), version=9)],
        watches=[[event("MODIFIED", obj("a", 10)), event("DELETED", obj("b", 11)), HANG]],
    )
    async with reflecting(api) as (reflector, told):
        await reflector.synced.wait()
        await asyncio.sleep(1)
        assert api.details("list") == ["", "next"]
        assert api.details("watch") == ["9"]
        assert told == [("a", True), ("b", True), ("a", True), ("b", False)]
        assert reflector.store.all_keys() == (Key("ns", "a"),)


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param(Gone("too old", status=410), id="as a status"),
        pytest.param([event("ERROR", {"code": 410, "reason": "Expired"})], id="in the stream"),
    ],
)
async def test_gone_lists_again_and_tells_of_what_vanished(gone: Any) -> None:
    api = ScriptedApi(
        lists=[page(obj("a", 1), obj("b", 2), version=5), page(obj("a", 1), version=50)],
        watches=[gone],
    )
    async with reflecting(api) as (_, told):
        await asyncio.sleep(30)
        assert api.details("watch") == ["5", "50"]
        assert told == [("a", True), ("b", True), ("b", False)]


async def test_an_expired_continue_token_starts_the_list_again() -> None:
    api = ScriptedApi(
        lists=[
            page(obj("a", 1), version=5, token="next"),
            Gone("the token has expired", status=410),
            page(obj("a", 1), obj("b", 2), version=6),
        ],
        watches=[],
    )
    async with reflecting(api) as (reflector, _):
        await reflector.synced.wait()
        assert api.details("list") == ["", "next", ""]
        assert len(reflector.store) == 2


async def test_another_error_event_reconnects_without_a_list() -> None:
    error = [event("ERROR", {"code": 500, "message": "etcd changed its leader"})]
    api = ScriptedApi(
        lists=[page(version=5)],
        watches=[[bookmark(7), *error], [event("ADDED", obj("a", 8)), HANG]],
    )
    async with reflecting(api) as (reflector, _):
        await asyncio.sleep(30)
        assert api.count("list") == 1
        assert api.details("watch") == ["5", "7"]
        assert len(reflector.store) == 1


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(ConnectionResetError("reset"), id="reset"),
        pytest.param(aiohttp.ClientPayloadError("cut off"), id="cut off"),
        pytest.param(ValueError("Chunk too big"), id="a line beyond every bound"),
        pytest.param(b"{not json}\n", id="garbage"),
    ],
)
async def test_a_broken_stream_goes_on_where_it_was(broken: Any) -> None:
    api = ScriptedApi(
        lists=[page(version=5)],
        watches=[[event("ADDED", obj("a", 6)), broken], [event("MODIFIED", obj("a", 7)), HANG]],
    )
    async with reflecting(api) as (_, told):
        await asyncio.sleep(30)
        assert api.count("list") == 1
        assert api.details("watch") == ["5", "6"]
        assert told == [("a", True), ("a", True)]


async def test_a_stream_that_closes_at_once_takes_the_backoff() -> None:
    api = ScriptedApi(lists=[page(version=5)], watches=[[] for _ in range(1000)])
    async with reflecting(api):
        await asyncio.sleep(120)
        assert 10 < api.count("watch") < 30
        assert api.count("list") == 1


async def test_a_stream_that_ends_in_its_time_is_opened_again_at_once() -> None:
    api = ScriptedApi(lists=[page(version=5)], watches=[[400]])
    async with reflecting(api):
        await asyncio.sleep(401)
        (_, first), (_, second) = [(k, t) for t, k, _ in api.requests if k == "watch"]
        assert second - first == pytest.approx(400)


async def test_an_outage_is_waited_out_gently_and_then_everything_is_seen() -> None:
    down = [Unreachable("refused") for _ in range(8)]
    api = ScriptedApi(
        lists=[page(obj("a", 1), version=5), page(obj("a", 2), version=9)],
        watches=[*down, Gone("too old", status=410)],
    )
    async with reflecting(api) as (_, told):
        await asyncio.sleep(30)
        assert api.count("watch") < 9
        await asyncio.sleep(60)
        assert told == [("a", True), ("a", True)]


async def test_retry_after_is_honoured() -> None:
    busy = Throttled("later", status=429, retry_after_seconds=20.0)
    api = ScriptedApi(lists=[page(version=5)], watches=[busy])
    async with reflecting(api):
        await asyncio.sleep(40)
        times = [time for time, kind, _ in api.requests if kind == "watch"]
        assert times[1] - times[0] >= 20


async def test_a_failing_list_is_not_hammered() -> None:
    api = ScriptedApi(lists=[ServerFailure("500", status=500)], watches=[])
    async with reflecting(api) as (reflector, _):
        await asyncio.sleep(120)
        assert api.count("list") < 30
        assert not reflector.synced.is_set()


async def test_a_half_open_connection_is_noticed_after_90_seconds() -> None:
    api = ScriptedApi(lists=[page(version=5)], watches=[[bookmark(6), HANG]])
    async with reflecting(api):
        await asyncio.sleep(95)
        assert api.details("watch") == ["5", "6"]


async def test_without_bookmarks_the_servers_own_timeout_counts() -> None:
    api = ScriptedApi(lists=[page(version=5)], watches=[[HANG]])
    async with reflecting(api):
        await asyncio.sleep(450 + 29)
        assert api.count("watch") == 1
        await asyncio.sleep(5)
        assert api.count("watch") == 2


async def test_what_nobody_reads_is_not_kept() -> None:
    big = obj(
        "a",
        1,
        managedFields=[{"manager": "x"}],
        annotations={"kubectl.kubernetes.io/last-applied-configuration": "{}", "own": "1"},
    )
    api = ScriptedApi(lists=[page(big, version=5)], watches=[])
    async with reflecting(api) as (reflector, _):
        await reflector.synced.wait()
        kept = reflector.store.get(Key("ns", "a"))
        assert kept is not None
        assert "managedFields" not in kept["metadata"]
        assert kept["metadata"]["annotations"] == {"own": "1"}
        assert kept["kind"] == "Pod"
