"""`anneal estimate --max-rank`: which rank memory allows, and which one a task asks for."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from anneal_jobs.cli import terminal
from anneal_jobs.cli.estimate import parts_of, table_of
from anneal_jobs.cli.options import OutputForm
from anneal_pipeline.memory.rank_limit import MEMORY_SHARE, RankLimit
from anneal_pipeline.model.task_ranks import ALPHA_PER_RANK, TASK_RANKS, TaskRanks, band


def show(found: RankLimit, *, output: OutputForm) -> None:
    if output is OutputForm.JSON:
        terminal.print_data(json.dumps(_data_of(found), indent=2))
        return
    terminal.print_data(found.sentence())
    terminal.stdout().print(table_of(found.plan, room=found.room))
    terminal.print_data("Memory bounds the rank, the task chooses it:")
    terminal.stdout().print(_tasks_table(found))


def _tasks_table(found: RankLimit) -> Table:
    """Usual ranks by task, as far as memory allows them."""
    table = Table(box=None, pad_edge=False)
    table.add_column("task")
    table.add_column("rank")
    table.add_column("alpha")
    for task in TASK_RANKS:
        table.add_row(task.task, *_band(task, limit=found.rank))
    return table


def _band(task: TaskRanks, *, limit: int) -> tuple[str, str]:
    allowed = task.below(limit)
    if allowed is None:
        return f"{task.ranks}: more than memory allows", ""
    cut = "" if allowed[1] == task.high else f" (of {task.ranks})"
    low, high = allowed
    return f"{band(low, high)}{cut}", band(ALPHA_PER_RANK * low, ALPHA_PER_RANK * high)


def _data_of(found: RankLimit) -> dict[str, Any]:
    room = found.room
    return {
        "maxRank": found.rank,
        "alpha": ALPHA_PER_RANK * found.rank,
        "memoryShare": MEMORY_SHARE,
        "peakBytes": found.needed,
        "loadingBytes": found.plan.loading + room.taken,
        "limitBytes": room.limit,
        "parts": dict(parts_of(found.plan, room=room)),
        "nextRank": found.next_rank,
        "nextPeakBytes": found.next_plan and found.next_plan.peak + room.taken,
        "microBatchSize": found.setting.rows,
        "sequenceLength": found.setting.length,
        "gradientCheckpointing": found.setting.checkpointing,
        "tasks": [
            {
                "task": task.task,
                "low": task.low,
                "high": task.high,
                "allowed": task.below(found.rank),
            }
            for task in TASK_RANKS
        ],
    }
