"""The worker loop: failures stay with their key."""

import asyncio

import pytest
from tests.unit.operator_runtime.conftest import obj

from anneal_operator.backoff import Backoff
from anneal_operator.controller import Controller, resync
from anneal_operator.errors import ChildRefused, Conflict, Throttled
from anneal_operator.metrics import Metrics
from anneal_operator.store import Store
from anneal_operator.token_bucket import TokenBucket
from anneal_operator.workqueue import Key, WorkQueue

pytestmark = pytest.mark.looptime
A, B = Key("ns", "a"), Key("ns", "b")


async def run_for(seconds: float, queue: WorkQueue, reconcile) -> Metrics:
    metrics = Metrics(version="test")
    controller = Controller(
        name="test", queue=queue, reconcile=reconcile, metrics=metrics, num_workers=2
    )
    task = asyncio.create_task(controller.run())
    await asyncio.sleep(seconds)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return metrics


async def test_one_jobs_bug_does_not_stop_the_others() -> None:
    queue, done = WorkQueue(), []

    async def reconcile(key: Key) -> None:
        if key == A:
            raise KeyError("a bug of ours")
        done.append(key)

    queue.add(A)
    queue.add(B)
    metrics = await run_for(10, queue, reconcile)
    assert done == [B]
    errors = metrics.registry.get_sample_value(
        "anneal_reconciles_total", {"controller": "test", "result": "error"}
    )
    assert errors is not None
    assert 5 < errors < 20


async def test_a_conflict_is_retried_soon_and_a_throttle_when_it_says() -> None:
    queue, times = WorkQueue(), []
    script = [Conflict("stale", status=409), Throttled("later", retry_after_seconds=30.0), None]

    async def reconcile(key: Key) -> None:
        times.append(asyncio.get_running_loop().time())
        step = script.pop(0)
        if step is not None:
            raise step

    queue.add(A)
    await run_for(60, queue, reconcile)
    assert times[1] - times[0] < 0.1
    assert times[2] - times[1] == pytest.approx(30)


async def test_a_reconcile_that_hangs_is_cut_off() -> None:
    queue, calls = WorkQueue(), []

    async def reconcile(key: Key) -> None:
        calls.append(key)
        if len(calls) == 1:
            await asyncio.Event().wait()

    queue.add(A)
    await run_for(130, queue, reconcile)
    assert len(calls) == 2


async def test_a_job_that_asks_for_it_is_looked_at_again() -> None:
    queue, calls = WorkQueue(), []

    async def reconcile(key: Key) -> float | None:
        calls.append(asyncio.get_running_loop().time())
        return 15.0 if len(calls) < 3 else None

    queue.add(A)
    await run_for(100, queue, reconcile)
    assert [round(t - calls[0]) for t in calls] == [0, 15, 30]


async def test_the_resync_is_spread_over_the_interval() -> None:
    queue = WorkQueue()
    keys = tuple(Key("ns", str(n)) for n in range(600))
    task = asyncio.create_task(resync(queue=queue, keys=lambda: keys, interval_seconds=600))
    await asyncio.sleep(60.5)
    assert queue.depth == 60
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_writes_are_limited_after_the_burst() -> None:
    loop = asyncio.get_running_loop()
    bucket = TokenBucket(rate=20, burst=40, clock=loop.time)
    began = loop.time()
    await asyncio.gather(*(bucket.take() for _ in range(100)))
    assert loop.time() - began == pytest.approx(3.0, abs=0.1)


def test_the_backoff_doubles_to_its_cap_and_is_reset_by_health_only() -> None:
    time = [0.0]
    backoff = Backoff(clock=lambda: time[0], random=lambda: 1.0)
    assert [backoff.next_delay_seconds() for _ in range(6)] == [0.8, 1.6, 3.2, 6.4, 12, 12]
    time[0] += 60
    assert backoff.next_delay_seconds() == 12
    time[0] += 121
    assert backoff.next_delay_seconds() == 0.8
    assert backoff.next_delay_seconds(at_least=20.0) == 20.0


def test_a_jitter_of_nothing_is_no_hot_loop() -> None:
    backoff = Backoff(clock=lambda: 0.0, random=lambda: 0.0)
    assert backoff.next_delay_seconds() == pytest.approx(0.1)


def test_replacing_one_namespace_leaves_the_others_alone() -> None:
    store = Store(index=lambda o: o["metadata"]["name"])
    told: list[tuple[str, bool]] = []
    store.replace([obj("a", 1, namespace="x"), obj("a", 1, namespace="y")], namespace=None)
    store.listen(lambda key, before, after: told.append((str(key), after is not None)))
    store.replace([obj("b", 2, namespace="x")], namespace="x")
    assert told == [("x/a", False), ("x/b", True)]
    assert [o["metadata"]["namespace"] for o in store.indexed("a")] == ["y"]


def test_an_unchanged_version_is_not_told_again() -> None:
    store, told = Store(), []
    store.put(obj("a", 1))
    store.listen(lambda key, before, after: told.append(key))
    store.put(obj("a", 1))
    assert told == []


async def test_a_child_that_cannot_be_made_is_no_bug_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = WorkQueue()

    async def reconcile(key: Key) -> None:
        raise ChildRefused("ConfigMap bot-config is somebody else's.")

    queue.add(A)
    metrics = await run_for(1, queue, reconcile)
    told = {
        result: metrics.registry.get_sample_value(
            "anneal_reconciles_total", {"controller": "test", "result": result}
        )
        for result in ("retry", "error")
    }
    assert told["retry"]
    assert told["error"] is None
    assert caplog.records
    assert not any(record.exc_info for record in caplog.records)
