"""An attempt under Ray: started, trained on all ranks, and how it ended."""

from __future__ import annotations

from pathlib import Path

from anneal_jobs.attempt import Attempt
from anneal_jobs.cpus import count_cpus
from anneal_jobs.errors import CHECKPOINT_GIVEN_UP, TRAINER_CRASHED, InfrastructureError
from anneal_jobs.outcome import find_outcome, one_sentence, outcome_of_error
from anneal_jobs.ray_driver import Resources, keep_worker_output, start_ray, train
from anneal_jobs.stop import StopRequest
from anneal_operator.api.outcome import Outcome, OutcomeClass


def run_with_ray(attempt: Attempt, stop: StopRequest) -> Outcome:
    """Start Ray and train; a Ray that does not start is an outcome too."""
    compute = attempt.config.compute
    resources = Resources(
        num_ranks=compute.ranks_per_worker,
        num_cpus=count_cpus(),
        use_gpu=compute.gpus_per_worker > 0,
    )
    try:
        ray_folder = start_ray(resources)
    except InfrastructureError as error:
        return outcome_of_error(error)
    stop.install()
    return run_ranks(attempt, resources, stop, ray_folder=ray_folder)


def run_ranks(
    attempt: Attempt, resources: Resources, stop: StopRequest, *, ray_folder: Path
) -> Outcome:
    """Train on all ranks, and find out how it ended."""
    outcomes = attempt.folders.outcomes
    outcomes.mkdir(parents=True, exist_ok=True)
    error = train(attempt, resources, is_given_up=lambda: stop.is_overdue)
    if outcome := find_outcome(outcomes):
        return outcome
    keep_worker_output(ray_folder, attempt.folders.logs)
    if stop.is_overdue:
        return Outcome(
            outcome_class=OutcomeClass.INFRASTRUCTURE,
            reason=CHECKPOINT_GIVEN_UP,
            message="The checkpoint could not be stored within checkpoint.graceSeconds; the next "
            "attempt goes on from the one before. Raise it if this happens again.",
        )
    cause = str(error).strip().splitlines()[-1] if error and str(error).strip() else "no trace left"
    return Outcome(
        outcome_class=OutcomeClass.INFRASTRUCTURE,
        reason=TRAINER_CRASHED,
        message=one_sentence(f"A training process ended without an outcome: {cause}"),
    )
