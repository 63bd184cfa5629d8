"""Ranks that are usual for a kind of task: what to start with, not what must be.

The bands are those of the specification, and stand here only: advice, `anneal estimate` and the
test of the user guide take them from here. Memory bounds the rank, the task chooses it: a rank
above its task's band learns the rows by heart, one below it stops learning early. Alpha starts at
twice the rank; equal to it is cautious, four times it is bold.
"""

from __future__ import annotations

from dataclasses import dataclass

ALPHA_PER_RANK = 2
RATIO_USUAL = (1, 4)
"""Alpha over rank, from cautious to bold."""


@dataclass(frozen=True, kw_only=True)
class TaskRanks:
    task: str
    low: int
    high: int

    @property
    def ranks(self) -> str:
        return band(self.low, self.high)

    @property
    def alphas(self) -> str:
        return band(ALPHA_PER_RANK * self.low, ALPHA_PER_RANK * self.high)

    def below(self, limit: int) -> tuple[int, int] | None:
        """The part of the band up to `limit`, or None where all of it is above."""
        return (self.low, min(self.high, limit)) if self.low <= limit else None


def band(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


INSTRUCTIONS = TaskRanks(task="following instructions", low=16, high=32)
HARD_REASONING = TaskRanks(task="hard reasoning", low=64, high=128)
TASK_RANKS = (
    TaskRanks(task="style and tone", low=4, high=8),
    INSTRUCTIONS,
    TaskRanks(task="creative writing", low=16, high=32),
    TaskRanks(task="knowledge of a domain", low=32, high=64),
    TaskRanks(task="code", low=32, high=64),
    HARD_REASONING,
)
ANY_TASK = TaskRanks(
    task="any", low=min(t.low for t in TASK_RANKS), high=max(t.high for t in TASK_RANKS)
)
