"""No key twice at once, no event lost."""

import asyncio
import random

import pytest

from anneal_operator.workqueue import Key, WorkQueue

pytestmark = pytest.mark.looptime
A, B = Key("ns", "a"), Key("ns", "b")


async def test_adding_twice_is_once() -> None:
    queue = WorkQueue()
    queue.add(A)
    queue.add(A)
    assert queue.depth == 1


async def test_a_key_that_changes_under_work_is_due_once_more() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert await queue.get() == A
    queue.add(A)
    queue.add(A)
    assert queue.depth == 0
    queue.done(A)
    assert await queue.get() == A
    queue.done(A)
    assert queue.depth == 0


async def test_of_several_later_times_the_earliest_counts() -> None:
    queue = WorkQueue()
    loop = asyncio.get_running_loop()
    began = loop.time()
    for seconds in (50, 10, 30):
        queue.add_after(A, seconds=seconds)
    await queue.get()
    assert loop.time() - began == pytest.approx(10)
    queue.done(A)
    await asyncio.sleep(100)
    assert queue.depth == 0


async def test_failures_double_up_to_the_cap_and_success_forgets() -> None:
    queue = WorkQueue()
    delays = [queue.add_failed(A) for _ in range(30)]
    assert delays[:4] == [0.005, 0.01, 0.02, 0.04]
    assert delays[-1] == 300
    queue.forget(A)
    assert queue.add_failed(A) == 0.005
    assert queue.add_failed(B, at_least=7.0) == 7.0


async def test_a_worker_that_is_cancelled_as_it_is_woken_loses_no_key() -> None:
    queue = WorkQueue()
    first = asyncio.create_task(queue.get())
    second = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add(A)
    first.cancel()
    second_got = await asyncio.wait_for(second, 1)
    assert second_got == A
    await asyncio.gather(first, return_exceptions=True)


async def test_many_workers_never_share_a_key_and_see_the_last_state() -> None:
    draw = random.Random(3)
    queue, keys = WorkQueue(), [Key("ns", str(n)) for n in range(5)]
    state = dict.fromkeys(keys, 0)
    seen = dict.fromkeys(keys, 0)
    busy: set[Key] = set()

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in busy
            busy.add(key)
            seen[key] = state[key]
            await asyncio.sleep(draw.random())
            busy.discard(key)
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    for _ in range(300):
        key = draw.choice(keys)
        state[key] += 1
        queue.add(key)
        await asyncio.sleep(draw.random() / 5)
    await asyncio.sleep(60)
    for worker in workers:
        assert not worker.done()
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert seen == state
