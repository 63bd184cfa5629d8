"""How many ranks the adapters may have together at each step: a pure function of the step number.

The cubic fall of AdaLoRA (Zhang et al. 2023, equation 12), as PEFT's `budget_schedule` has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from anneal_pipeline.config.tuning import LoraConfig

_ROUNDING = 1e-9
"""A share of the steps that is a whole number of them but for the rounding of fp64 is that."""


@dataclass(frozen=True, kw_only=True)
class RankSchedule:
    """Steps are counted from 1, as those that are done."""

    initial: int
    """Ranks of all adapters together at the beginning."""
    target: int
    """What they have from `end` on: the budget."""
    begin: int
    """The last step with all ranks."""
    end: int
    every: int

    def budget(self, step: int) -> int:
        """Ranks of all adapters together after `step`."""
        if step <= self.begin:
            return self.initial
        if step >= self.end:
            return self.target
        left = 1.0 - (step - self.begin) / (self.end - self.begin)
        return int((self.initial - self.target) * left**3 + self.target)

    def is_due(self, step: int, *, num_kept: int) -> bool:
        """Whether ranks are decided after `step`, where `num_kept` are left before it.

        The last decision is made up for where nothing was learnt by its own step.
        """
        if step > self.end:
            return num_kept > self.target
        return step == self.end or (step > self.begin and step % self.every == 0)


def rank_schedule(
    config: LoraConfig, *, num_adapters: int, total_steps: int
) -> RankSchedule | None:
    """The fall of a run's ranks, or None where they stay."""
    allocation = config.rank_allocation
    if allocation is None:
        return None
    return RankSchedule(
        initial=config.initial_rank * num_adapters,
        target=config.rank * num_adapters,
        begin=math.floor(total_steps * allocation.start_share + _ROUNDING),
        end=math.ceil(total_steps * allocation.end_share - _ROUNDING),
        every=allocation.every_steps,
    )
