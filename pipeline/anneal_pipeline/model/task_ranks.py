"""Ranks that are usual for a kind of task: what to start with, not what must be.

The bands are those of the specification. Memory bounds the rank, the task chooses it: a rank above
its task's band learns the rows by heart, one below it stops learning early. Alpha starts at twice
the rank; equal to it is cautious, four times it is bold.
"""

from __future__ import annotations

from dataclasses import dataclass

ALPHA_PER_RANK = 2


@dataclass(frozen=True, kw_only=True)
class TaskRanks:
    task: str
    low: int
    high: int

    def below(self, limit: int) -> tuple[int, int] | None:
        """The part of the band up to `limit`, or None where all of it is above."""
        return (self.low, min(self.high, limit)) if self.low <= limit else None


TASK_RANKS = (
    TaskRanks(task="style and tone", low=4, high=8),
    TaskRanks(task="following instructions", low=16, high=32),
    TaskRanks(task="creative writing", low=16, high=32),
    TaskRanks(task="knowledge of a domain", low=32, high=64),
    TaskRanks(task="code", low=32, high=64),
    TaskRanks(task="hard reasoning", low=64, high=128),
)
