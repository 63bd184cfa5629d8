"""The newest progress report of each job, between the progress server and reconcile.

Reports are let through to the status at most every 5 s per job; one that brings the outcome at
once. A report counts as work only if it tells of something that the one before did not: the stall
clock must not be fed by a trainer that merely lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from anneal_operator.api.outcome import Outcome
from anneal_operator.api.progress import MIN_INTERVAL_SECONDS, ProgressEvent, ProgressReport
from anneal_operator.observation import Report
from anneal_operator.workqueue import Key, WorkQueue


@dataclass(slots=True)
class _Entry:
    newest: Report
    released: Report | None = None
    released_at: float = float("-inf")
    kept: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the outcome is in the status."""
    told: set[ProgressEvent] = field(default_factory=set)
    """Events that were already taken."""
    untold: list[ProgressEvent] = field(default_factory=list)


@dataclass(slots=True)
class ProgressBoard:
    """Reports of all jobs; lives on the leader only."""

    queue: WorkQueue
    clock: Callable[[], float]
    now: Callable[[], datetime]
    _entries: dict[str, _Entry] = field(default_factory=dict)

    def put(self, key: Key, *, job_uid: str, body: ProgressReport) -> None:
        """Take a report in and make the job due when it may be written."""
        entry = self._entries.get(job_uid)
        last = entry.newest if entry else None
        worked = last is None or _work(last.body) != _work(body)
        report = Report(body=body, worked_at=self.now() if worked or not last else last.worked_at)
        if entry is None or entry.newest.body.anneal.attempt != body.anneal.attempt:
            entry = _Entry(newest=report)
            self._entries[job_uid] = entry
        elif entry.newest.body.anneal.outcome is None or body.anneal.outcome is not None:
            # Nothing that comes after the outcome takes it back.
            entry.newest = report
        fresh = [event for event in body.anneal.events if event not in entry.told]
        entry.told.update(fresh)
        entry.untold.extend(fresh)
        if body.anneal.outcome is not None:
            self.queue.add(key)
            return
        wait = entry.released_at + MIN_INTERVAL_SECONDS - self.clock()
        self.queue.add_after(key, seconds=wait)

    def released(self, job_uid: str, *, attempt: int) -> Report | None:
        """The report that may go into the status now."""
        entry = self._entries.get(job_uid)
        if entry is None or entry.newest.body.anneal.attempt != attempt:
            return None
        due = self.clock() - entry.released_at >= MIN_INTERVAL_SECONDS
        if entry.released is not entry.newest and (due or entry.newest.body.anneal.outcome):
            entry.released, entry.released_at = entry.newest, self.clock()
        return entry.released

    def take_events(self, job_uid: str) -> list[ProgressEvent]:
        """What the trainer wants people to know; each is given out once."""
        entry = self._entries.get(job_uid)
        if entry is None:
            return []
        taken, entry.untold = entry.untold, []
        return taken

    def kept(self, job_uid: str, outcome: Outcome | None) -> None:
        """The status with this outcome has been written."""
        entry = self._entries.get(job_uid)
        if entry is not None and outcome is not None:
            entry.kept.set()

    async def until_kept(self, job_uid: str, *, seconds: float) -> bool:
        """Wait until the job's outcome is in its status; False if it takes too long."""
        entry = self._entries.get(job_uid)
        if entry is None:
            return False
        try:
            async with asyncio.timeout(seconds):
                await entry.kept.wait()
        except TimeoutError:
            return False
        return True

    def forget(self, job_uid: str) -> None:
        """The job is gone."""
        self._entries.pop(job_uid, None)


def _work(body: ProgressReport) -> tuple[object, ...]:
    """What has been done, as opposed to how time has passed."""
    told = body.anneal
    stage = (told.stage.name, told.stage.done) if told.stage else None
    percent = body.trainer_status.progress_percentage
    return (stage, told.step, told.checkpoint, told.outcome, percent)
