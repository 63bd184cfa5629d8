"""Reports reach the status at most every 5 seconds, and an outcome at once."""

import asyncio
from datetime import timedelta

from tests.unit.controller.conftest import NOW, outcome, report

from anneal_operator.progress_board import ProgressBoard
from anneal_operator.workqueue import Key, WorkQueue

KEY = Key("team-a", "support-bot")


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def now(self):
        return NOW + timedelta(seconds=self.seconds - 1000)


def make() -> tuple[ProgressBoard, Clock, WorkQueue]:
    clock, queue = Clock(), WorkQueue()
    return ProgressBoard(queue=queue, clock=clock, now=clock.now), clock, queue


async def test_reports_are_let_through_every_five_seconds() -> None:
    board, clock, queue = make()
    steps = []
    for step in range(1, 13):
        board.put(KEY, job_uid="u", body=report(step=step).body)
        released = board.released("u", attempt=1)
        assert released is not None
        steps.append(released.body.anneal.step)
        clock.seconds += 1
    assert steps == [1] * 5 + [6] * 5 + [11] * 2
    assert queue.depth == 1


async def test_an_outcome_passes_at_once_and_is_not_taken_back() -> None:
    board, _, _ = make()
    board.put(KEY, job_uid="u", body=report(step=1).body)
    board.released("u", attempt=1)
    board.put(KEY, job_uid="u", body=report(step=2, outcome=outcome("Done").to_data()).body)
    board.put(KEY, job_uid="u", body=report(step=3).body)
    released = board.released("u", attempt=1)
    assert released is not None
    assert released.body.anneal.outcome == outcome("Done")


async def test_only_work_feeds_the_stall_clock() -> None:
    board, clock, _ = make()
    stage = {"name": "prepare", "done": 5}
    board.put(KEY, job_uid="u", body=report(stage=stage).body)
    clock.seconds += 60
    board.put(KEY, job_uid="u", body=report(stage=stage).body)
    released = board.released("u", attempt=1)
    assert released is not None
    assert released.worked_at == NOW
    board.put(KEY, job_uid="u", body=report(stage={**stage, "done": 6}).body)
    clock.seconds += 5
    released = board.released("u", attempt=1)
    assert released is not None
    assert released.worked_at == NOW + timedelta(seconds=60)


async def test_a_report_of_another_attempt_is_not_shown() -> None:
    board, _, _ = make()
    board.put(KEY, job_uid="u", body=report(step=1).body)
    assert board.released("u", attempt=2) is None
    assert board.released("other", attempt=1) is None


async def test_waiting_for_an_outcome_to_be_kept() -> None:
    board, _, _ = make()
    said = outcome("Done")
    board.put(KEY, job_uid="u", body=report(outcome=said.to_data()).body)
    assert not await board.until_kept("u", seconds=0)
    waiting = asyncio.create_task(board.until_kept("u", seconds=60))
    await asyncio.sleep(0)
    board.kept("u", said)
    assert await waiting
