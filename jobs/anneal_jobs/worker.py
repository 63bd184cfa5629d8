"""The function every Ray Train worker runs: one rank of one attempt.

A planned stop and an end both return normally and leave an outcome file; Ray would otherwise take
a planned stop for a crash. A failure leaves its outcome too, and then raises where other ranks
wait, so that Ray ends them. The driver alone maps outcomes to an exit code.
"""

from __future__ import annotations

import logging
from typing import Any

import ray.train
import ray.train.torch
import torch.distributed

from anneal_jobs.attempt import Attempt, attempt_of
from anneal_jobs.execution import Reporting, checkpoint_store, run_first_rank
from anneal_jobs.inputs import fetch_inputs, open_place
from anneal_jobs.logs import log_to
from anneal_jobs.observer import StopObserver
from anneal_jobs.outcome import outcome_of_error, write_outcome
from anneal_jobs.progress import ProgressReporter, ProgressServer
from anneal_jobs.run_state import RunState
from anneal_jobs.tracking.connection import connect
from anneal_jobs.tracking.writer import RunWriter
from anneal_operator.api.outcome import Outcome
from anneal_pipeline.errors import StopRequestedError
from anneal_pipeline.stages import run_pipeline

log = logging.getLogger(__name__)


def train_worker(settings: dict[str, Any]) -> None:
    """Entry point under Ray Train; `settings` is `Attempt` as plain data."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    attempt = attempt_of(settings)
    log_to(attempt.folders.logs / f"rank-{rank}.log", with_console=False)
    logging.captureWarnings(capture=True)
    outcome_path = attempt.folders.outcomes / f"rank-{rank}.json"
    state = RunState()
    try:
        if rank == 0:
            outcome = _run_first(attempt, state, world_size=world_size)
            write_outcome(outcome_path, outcome)
        else:
            _run_other(attempt, rank=rank, world_size=world_size)
    except Exception as error:  # the worker loop's edge: whatever it is becomes an outcome
        if isinstance(error, StopRequestedError):
            log.info("%s", error)
        else:
            log.exception("attempt failed")
        write_outcome(
            outcome_path, outcome_of_error(error, step=state.step, checkpoint=state.checkpoint)
        )
        if world_size > 1:
            raise


def _run_first(attempt: Attempt, state: RunState, *, world_size: int) -> Outcome:
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
            device=ray.train.torch.get_device(),
            world_size=world_size,
            inputs_ready=lambda: _meet(world_size),
        )
    finally:
        writer.close()
        if reporter is not None:
            reporter.close()


def _run_other(attempt: Attempt, *, rank: int, world_size: int) -> None:
    """Wait for rank 0's downloads (one pod shares its scratch), then train along."""
    _meet(world_size)
    place = open_place(attempt)
    inputs = fetch_inputs(attempt, workspace=place.workspace, on_bytes=lambda done, total: None)
    run_pipeline(
        attempt.config.pipeline,
        workspace=place.workspace,
        model_dir=inputs.model.folder,
        dataset_files=inputs.dataset,
        checkpoints=checkpoint_store(attempt, place, rank=rank, on_rejected=lambda name, why: None),
        observer=StopObserver(stop_file=attempt.folders.stop_file),
        device=ray.train.torch.get_device(),
        rank=rank,
        world_size=world_size,
    )


def _meet(world_size: int) -> None:
    """Wait until every rank has come here."""
    if world_size > 1:
        torch.distributed.barrier()
