"""The function every Ray Train worker runs: one rank of one attempt.

A planned stop and an end both return normally and leave an outcome file; Ray would otherwise take
a planned stop for a crash. A failure leaves its outcome too, and then raises where other ranks
wait, so that Ray ends them. The driver alone maps outcomes to an exit code.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import ray.train
import ray.train.torch

from anneal_jobs.attempt import Attempt, attempt_of
from anneal_jobs.execution import Reporting, run_first_rank, run_other_rank
from anneal_jobs.logs import log_to
from anneal_jobs.outcome import outcome_of_error, write_outcome
from anneal_jobs.progress import ProgressReporter, ProgressServer
from anneal_jobs.run_state import RunState
from anneal_jobs.tracking.connection import connect
from anneal_jobs.tracking.writer import RunWriter
from anneal_operator.api.outcome import Outcome
from anneal_pipeline.errors import StopRequestedError
from anneal_pipeline.training.ranks import Ranks

log = logging.getLogger(__name__)


def train_worker(settings: dict[str, Any]) -> None:
    """Entry point under Ray Train; `settings` is `Attempt` as plain data."""
    context = ray.train.get_context()
    ranks = Ranks(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
    )
    attempt = attempt_of(settings)
    log_to(attempt.folders.logs / f"rank-{ranks.rank}.log", with_console=False)
    logging.captureWarnings(capture=True)
    log.info(
        "rank %d of %d on %s, process %d", ranks.rank, ranks.world_size, ranks.device, os.getpid()
    )
    outcome_path = attempt.folders.outcomes / f"rank-{ranks.rank}.json"
    state = RunState()
    try:
        if ranks.is_first:
            write_outcome(outcome_path, _run_first(attempt, state, ranks=ranks))
        else:
            run_other_rank(attempt, ranks=ranks)
    except Exception as error:  # the worker loop's edge: whatever it is becomes an outcome
        if isinstance(error, StopRequestedError):
            log.info("%s", error)
        else:
            log.exception("attempt failed")
        write_outcome(
            outcome_path, outcome_of_error(error, step=state.step, checkpoint=state.checkpoint)
        )
        if ranks.world_size > 1 and not isinstance(error, StopRequestedError):
            raise


def _run_first(attempt: Attempt, state: RunState, *, ranks: Ranks) -> Outcome:
    server = ProgressServer.from_environment()
    reporter = None
    if server is not None:
        reporter = ProgressReporter(state, post=server.post, attempt=attempt.number)
        reporter.start()
    writer = RunWriter(connect(attempt.config.tracking.uri), attempt.run_id)
    writer.start()
    try:
        return run_first_rank(
            attempt,
            Reporting(state=state, writer=writer, reporter=reporter),
            ranks=ranks,
        )
    finally:
        writer.close()
        if reporter is not None:
            reporter.close()
