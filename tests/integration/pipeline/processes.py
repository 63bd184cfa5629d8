"""Ranks as processes of their own, joined by gloo over loopback.

They fork from one server that has imported torch and transformers already, so that a pair of them
costs a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed

WAIT_SECONDS = 120
"""After so long a rank that still waits for another has hung, which is what must not happen."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.unit.pipeline.kit", "anneal_pipeline.stages"])


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a rank ended: what its task returned or raised; neither if it was killed."""

    value: Any = None
    error: str | None = None
    """Class and message."""
    exit_code: int


def run_ranks(task: Callable[..., Any], *arguments: Any, meeting: Path, count: int) -> list[Ended]:
    """Call `task(rank, count, *arguments)` in every rank; `meeting` names a file to be made."""
    running = []
    for rank in range(count):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(
            target=_rank, args=(task, rank, count, str(meeting), arguments, sender), daemon=True
        )
        process.start()
        sender.close()
        running.append((process, receiver))
    try:
        return [_wait_for(process, receiver) for process, receiver in running]
    finally:
        for process, _ in running:
            process.kill()


def values_of(ended: Sequence[Ended]) -> list[Any]:
    """What all ranks returned, if they did."""
    assert [(end.exit_code, end.error) for end in ended] == [(0, None)] * len(ended)
    return [end.value for end in ended]


def die() -> None:
    """As the kernel ends a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_for(process: Any, receiver: Connection) -> Ended:
    told: dict[str, Any] = {}
    if receiver.poll(WAIT_SECONDS):
        try:
            told = receiver.recv()
        except EOFError:
            told = {}
    process.join(WAIT_SECONDS)
    assert process.exitcode is not None, "a rank hangs"
    return Ended(exit_code=process.exitcode, **told)


def _rank(
    task: Callable[..., Any],
    rank: int,
    count: int,
    meeting: str,
    arguments: tuple[Any, ...],
    sender: Connection,
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if count > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=2 * WAIT_SECONDS),
        )
    try:
        sender.send({"value": task(rank, count, *arguments)})
    except Exception as error:
        sender.send({"error": f"{type(error).__name__}: {error}"})
    finally:
        sender.close()
