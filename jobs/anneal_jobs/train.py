"""`anneal-train /etc/anneal/job.json`: one attempt of a FineTuneJob in its pod.

Starts Ray, trains on all ranks, and tells the outcome three ways (progress server, termination log,
output folder) before it exits with the outcome's code: 0 done, 65 the user's input, 75 interrupted,
203 everything else.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anneal_jobs.attempt import Attempt, AttemptFolders
from anneal_jobs.cpus import count_cpus
from anneal_jobs.errors import (
    CHECKPOINT_GIVEN_UP,
    RUN_CONFIG_INVALID,
    TRAINER_CRASHED,
    InfrastructureError,
)
from anneal_jobs.logs import log_to, tail_of
from anneal_jobs.outcome import (
    find_outcome,
    one_sentence,
    outcome_of_error,
    write_termination_log,
)
from anneal_jobs.progress import ProgressServer, send_outcome
from anneal_jobs.ray_driver import Resources, keep_worker_output, start_ray, stop_ray, train
from anneal_jobs.stop import StopRequest
from anneal_jobs.storage.access import s3_settings_of
from anneal_jobs.storage.outputs import LOGS_NAME
from anneal_jobs.storage.places import open_folder
from anneal_jobs.storage.uri import parse_uri
from anneal_operator.api import names
from anneal_operator.api.outcome import Outcome, OutcomeClass
from anneal_operator.api.run_config import RunConfig
from anneal_pipeline.config.schema import ConfigError
from anneal_pipeline.errors import UserError

log = logging.getLogger(__name__)

_TELL_SECONDS = 60.0
_LOG_SHARE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Arguments:
    config_path: Path
    scratch: Path
    termination_log: Path


def main() -> None:
    arguments = _parse(sys.argv[1:])
    log_to(AttemptFolders(scratch=arguments.scratch).logs / "driver.log", with_console=True)
    sys.exit(run(arguments, os.environ))


def run(arguments: Arguments, environment: Mapping[str, str]) -> int:
    """One attempt from its stored config to its exit code."""
    number = int(environment.get(names.ENV_ATTEMPT, "1"))
    try:
        config = read_config(arguments.config_path)
    except InfrastructureError as error:
        outcome = outcome_of_error(error)
        tell(
            outcome, number=number, termination_log=arguments.termination_log, seconds=_TELL_SECONDS
        )
        return int(outcome.outcome_class.exit_code)
    attempt = Attempt(
        config=config,
        number=number,
        trusts_prepared_data=number > 1,
        writer_name=environment.get(names.ENV_POD_UID, "local000")[:8],
        run_id=environment[names.ENV_RUN_ID],
        folders=AttemptFolders(scratch=arguments.scratch),
    )
    stop = StopRequest(
        attempt.folders.stop_file, grace_seconds=config.pipeline.checkpoint.grace_seconds
    )
    stop.install()
    resources = Resources(
        num_ranks=config.compute.ranks_per_worker,
        num_cpus=count_cpus(),
        use_gpu=config.compute.gpus_per_worker > 0,
    )
    outcome = run_with_ray(attempt, resources, stop)
    log.info("outcome %s %s: %s", outcome.outcome_class, outcome.reason, outcome.message)
    seconds = min(_TELL_SECONDS, stop.remaining_seconds - _LOG_SHARE_SECONDS)
    tell(outcome, number=number, termination_log=arguments.termination_log, seconds=seconds)
    keep_logs(attempt, outcome)
    stop_ray()
    return int(outcome.outcome_class.exit_code)


def read_config(path: Path) -> RunConfig:
    """The stored run config; a damaged one is the operator's fault, not the user's."""
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except (OSError, ValueError, ConfigError) as error:
        raise InfrastructureError(
            RUN_CONFIG_INVALID, f"The stored run config {path} cannot be read: {error}"
        ) from error


def run_with_ray(attempt: Attempt, resources: Resources, stop: StopRequest) -> Outcome:
    """Start Ray and train; a Ray that does not start is an outcome too."""
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


def tell(outcome: Outcome, *, number: int, termination_log: Path, seconds: float) -> None:
    """Say how it ended where the operator looks: its server first, then the termination log."""
    server = ProgressServer.from_environment()
    within = max(1.0, seconds if math.isfinite(seconds) else _TELL_SECONDS)
    if server is not None and not send_outcome(
        outcome, post=server.post, attempt=number, within_seconds=within
    ):
        log.warning("the progress server did not take the outcome; the termination log holds it")
    write_termination_log(termination_log, outcome)


def keep_logs(attempt: Attempt, outcome: Outcome) -> None:
    """Leave the outcome and the end of every log file in the output folder."""
    name = f"{LOGS_NAME}/attempt-{attempt.number:02d}"
    try:
        folder = open_folder(parse_uri(attempt.config.output_uri), s3_settings_of(attempt.config))
        data = outcome.model_dump_json(exclude_none=True, indent=2).encode()
        folder.write(f"{name}/outcome.json", data)
        for path in sorted((attempt.folders.logs).glob("*.log")):
            folder.write(f"{name}/{path.name}", tail_of(path))
    except (UserError, OSError) as error:
        log.warning("the logs could not be stored: %s", error)


def _parse(argv: list[str]) -> Arguments:
    parser = argparse.ArgumentParser(
        prog="anneal-train", description="Run one attempt of a FineTuneJob in its pod."
    )
    parser.add_argument("config", type=Path, help="the stored run config, /etc/anneal/job.json")
    parser.add_argument("--work-folder", type=Path, default=Path(names.WORK_FOLDER))
    parser.add_argument("--termination-log", type=Path, default=Path(names.TERMINATION_LOG_PATH))
    parsed = parser.parse_args(argv)
    return Arguments(
        config_path=parsed.config,
        scratch=parsed.work_folder,
        termination_log=parsed.termination_log,
    )


if __name__ == "__main__":
    main()
