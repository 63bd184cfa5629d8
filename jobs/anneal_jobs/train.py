"""`anneal-train /etc/anneal/job.json`: one attempt of a FineTuneJob in its pod.

Looks at the inputs, starts Ray, trains on all ranks, and tells the outcome three ways (progress
server, termination log, output folder) before it exits with the outcome's code: 0 done, 65 the
user's input, 75 interrupted, 203 everything else.
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
from anneal_jobs.errors import (
    RUN_CONFIG_INVALID,
    InfrastructureError,
    JobsError,
)
from anneal_jobs.inputs import check_inputs
from anneal_jobs.logs import in_order, log_to, store_log
from anneal_jobs.outcome import outcome_of_error, write_termination_log
from anneal_jobs.progress import ProgressServer, send_outcome
from anneal_jobs.stop import StopRequest
from anneal_jobs.storage.access import s3_settings_of
from anneal_jobs.storage.outputs import LOGS_NAME
from anneal_jobs.storage.places import open_folder
from anneal_jobs.storage.uri import parse_uri
from anneal_operator.api import names
from anneal_operator.api.outcome import Outcome
from anneal_operator.api.run_config import RunConfig
from anneal_pipeline.config.schema import ConfigError
from anneal_pipeline.errors import StopRequestedError, UserError

log = logging.getLogger(__name__)

_TELL_SECONDS = 60.0
_LOG_SUFFIXES = (".log", ".jsonl")
_LOG_SHARE_SECONDS = 3.0
_SHOW_LOGS_SECONDS = 30.0
_SHOW_LOGS_SECONDS_MIN = 2.0


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
    if (refusal := refuse(attempt, stop)) is not None:
        return finish(attempt, refusal, stop, termination_log=arguments.termination_log)
    # Ray brings torch along: 10 CPU-seconds that a mistake in the job must not wait for.
    from anneal_jobs.ray_attempt import run_with_ray
    from anneal_jobs.ray_driver import stop_ray

    outcome = run_with_ray(attempt, stop)
    code = finish(attempt, outcome, stop, termination_log=arguments.termination_log)
    stop_ray()
    return code


def finish(attempt: Attempt, outcome: Outcome, stop: StopRequest, *, termination_log: Path) -> int:
    """Tell the outcome, leave the logs, and return the exit code."""
    log.info("outcome %s %s: %s", outcome.outcome_class, outcome.reason, outcome.message)
    seconds = min(_TELL_SECONDS, stop.remaining_seconds - _LOG_SHARE_SECONDS)
    tell(outcome, number=attempt.number, termination_log=termination_log, seconds=seconds)
    keep_logs(attempt, outcome)
    show_logs(attempt, within_seconds=min(_SHOW_LOGS_SECONDS, stop.remaining_seconds - 1.0))
    return int(outcome.outcome_class.exit_code)


def read_config(path: Path) -> RunConfig:
    """The stored run config; a damaged one is the operator's fault, not the user's."""
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except (OSError, ValueError, ConfigError) as error:
        raise InfrastructureError(
            RUN_CONFIG_INVALID, f"The stored run config {path} cannot be read: {error}"
        ) from error


def refuse(attempt: Attempt, stop: StopRequest) -> Outcome | None:
    """How the attempt ends before Ray is started; None when nothing speaks against starting."""
    try:
        check_inputs(attempt)
    except (UserError, JobsError, OSError) as error:
        return outcome_of_error(error)
    return outcome_of_error(StopRequestedError()) if stop.is_set else None


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
    """Leave the outcome and the log files in the output folder."""
    name = logs_folder(attempt)
    try:
        folder = open_folder(parse_uri(attempt.config.output_uri), s3_settings_of(attempt.config))
        data = outcome.model_dump_json(exclude_none=True, indent=2).encode()
        folder.write(f"{name}/outcome.json", data)
        for path in attempt_logs(attempt):
            store_log(path, folder, name=f"{name}/{path.name}")
    except (UserError, OSError) as error:
        log.warning("the logs could not be stored: %s", error)


def show_logs(attempt: Attempt, *, within_seconds: float) -> None:
    """Put the same logs beside the run in MLflow, whose page is where people look first."""
    if within_seconds < _SHOW_LOGS_SECONDS_MIN:
        return
    # MLflow costs 4 CPU-seconds, which nobody waits for any more.
    from anneal_jobs.tracking.connection import connect
    from anneal_jobs.tracking.run_logs import send_logs

    client = connect(attempt.config.tracking.uri)
    send_logs(
        client,
        attempt.run_id,
        attempt_logs(attempt),
        folder=logs_folder(attempt),
        within_seconds=within_seconds,
    )


def attempt_logs(attempt: Attempt) -> list[Path]:
    files = attempt.folders.logs.iterdir()
    return in_order(path for path in files if path.suffix in _LOG_SUFFIXES)


def logs_folder(attempt: Attempt) -> str:
    return f"{LOGS_NAME}/attempt-{attempt.number:02d}"


def _parse(argv: list[str]) -> Arguments:
    parser = argparse.ArgumentParser(
        prog="anneal-train", description="Run one attempt of a FineTuneJob in its pod."
    )
    parser.add_argument("config", type=Path, help="the stored run config, /etc/anneal/job.json")
    parser.add_argument(
        "--work-folder",
        type=Path,
        default=Path(names.WORK_FOLDER),
        help="scratch space (default: %(default)s)",
    )
    parser.add_argument(
        "--termination-log",
        type=Path,
        default=Path(names.TERMINATION_LOG_PATH),
        help="where the outcome is left (default: %(default)s)",
    )
    parsed = parser.parse_args(argv)
    return Arguments(
        config_path=parsed.config,
        scratch=parsed.work_folder,
        termination_log=parsed.termination_log,
    )


if __name__ == "__main__":
    main()
