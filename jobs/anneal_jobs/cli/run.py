"""`anneal run`: a FineTuneJob in this process, without a cluster and without Ray."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from anneal_jobs.attempt import Attempt
from anneal_jobs.cli import terminal
from anneal_jobs.cli.closing import print_closing
from anneal_jobs.cli.display import BarDisplay, LineDisplay
from anneal_jobs.cli.job_file import JobFile
from anneal_jobs.cli.local_job import LocalOptions as LocalOptions
from anneal_jobs.cli.local_job import (
    artefact_location,
    attempt_folder,
    attempt_of,
    last_attempt,
    run_config_of,
)
from anneal_jobs.errors import TRACKING_FAILED, InfrastructureError, JobsError
from anneal_jobs.event_log import EVENTS_NAME
from anneal_jobs.execution import Reporting, run_first_rank
from anneal_jobs.inputs import CONFIG_NAME
from anneal_jobs.logs import log_to, store_log
from anneal_jobs.outcome import outcome_of_error
from anneal_jobs.run_state import RunState
from anneal_jobs.storage.access import s3_settings_of
from anneal_jobs.storage.places import open_folder
from anneal_jobs.storage.uri import parse_uri
from anneal_jobs.tracking.connection import (
    UnreachableError,
    cause_of,
    connect,
    tell_outage_apart,
)
from anneal_jobs.tracking.local_run import RunEnd, close_run, ensure_run
from anneal_jobs.tracking.run_logs import send_logs
from anneal_jobs.tracking.writer import RunWriter
from anneal_operator.api.outcome import Outcome, OutcomeClass
from anneal_operator.api.run_config import RunConfig
from anneal_operator.api.run_page import run_page
from anneal_pipeline.checkpoint.store import BlobFolder
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.schema import ConfigError
from anneal_pipeline.device import choose_device
from anneal_pipeline.errors import PipelineError, StopRequestedError
from anneal_pipeline.observer import Observer
from anneal_pipeline.training.ranks import Ranks

log = logging.getLogger(__name__)

_LOG_NAME = "run.log"
_SHOW_LOGS_SECONDS = 30.0
_NOTE_UNFINISHED = (
    "A run of `anneal run` that has not finished. The same command, with the same job file and "
    "output folder, goes on from the newest checkpoint in `{folder}`, in this run."
)
_RUN_ENDS: dict[OutcomeClass, RunEnd] = {
    OutcomeClass.DONE: "FINISHED",
    OutcomeClass.INTERRUPTED: "KILLED",
    OutcomeClass.USER: "FAILED",
    OutcomeClass.INFRASTRUCTURE: "FAILED",
}
_EXIT_CODES = {
    OutcomeClass.DONE: 0,
    OutcomeClass.INTERRUPTED: int(OutcomeClass.INTERRUPTED.exit_code),
    OutcomeClass.USER: int(OutcomeClass.USER.exit_code),
    OutcomeClass.INFRASTRUCTURE: terminal.EXIT_FAILURE,
}


def run_job(job: JobFile, options: LocalOptions) -> int:
    """Run to the end or to an interruption; returns the exit code."""
    config = run_config_of(job, options)
    try:
        folder = open_folder(parse_uri(config.output_uri), s3_settings_of(config))
        last = last_attempt(folder)
        if done := _done_already(folder, config, number=last):
            terminal.stderr().print(f"{job.name} is done already; --output names a new folder")
            print_closing(terminal.stdout(), config, done)
            return 0
        client, run_id = _open_run(config)
    except (PipelineError, JobsError) as error:
        return _report(config, outcome_of_error(error), run_id=None)
    if (job.spec.compute.ranks_per_worker or 1) > 1:
        terminal.stderr().print(
            "compute.ranksPerWorker is for pods: this process trains alone, to the same result "
            "but for the last bits"
        )
    number = last + 1
    attempt = attempt_of(config, number=number, run_id=run_id)
    log_path = attempt.folders.scratch / _LOG_NAME
    log_paths = (log_path, attempt.folders.logs / EVENTS_NAME)
    for path in log_paths:
        path.unlink(missing_ok=True)
    log_to(log_path, with_console=False)
    logging.captureWarnings(capture=True)
    outcome = _train(attempt, client)
    logs = [path for path in log_paths if path.exists()]
    _keep(folder, config, outcome, number=number, logs=logs)
    send_logs(
        client,
        run_id,
        logs,
        folder=attempt_folder(number),
        within_seconds=_SHOW_LOGS_SECONDS,
    )
    close_run(client, run_id, end=_RUN_ENDS[outcome.outcome_class], note=_note(config, outcome))
    page = _page_of(client, run_id) if outcome.outcome_class is OutcomeClass.DONE else None
    return _report(config, outcome, run_id=run_id, page=page)


def _done_already(folder: BlobFolder, config: RunConfig, *, number: int) -> Outcome | None:
    """The outcome of the last attempt, if it finished this very configuration."""
    data = folder.read(f"{attempt_folder(number)}/outcome.json") if number else None
    outcome = Outcome.model_validate_json(data) if data else None
    if outcome is None or outcome.outcome_class is not OutcomeClass.DONE:
        return None
    stored = folder.read(f"{attempt_folder(number)}/{CONFIG_NAME}")
    if stored is None:
        return None
    try:  # as values: a release that knows more fields means the same by a file without them
        asked = PipelineConfig.parse(json.loads(stored))
    except (ConfigError, ValueError):
        return None
    return outcome if asked == config.pipeline else None


def _open_run(config: RunConfig) -> tuple[MlflowClient, str]:
    client = connect(config.tracking.uri)
    try:
        with tell_outage_apart():
            return client, ensure_run(
                client,
                experiment=config.tracking.experiment,
                artifact_location=artefact_location(config),
                job_name=config.job.name,
                job_uid=config.job.uid,
                tags=config.tracking.tags,
                note=_NOTE_UNFINISHED.format(folder=config.output_uri),
            )
    except (UnreachableError, MlflowException) as error:
        raise InfrastructureError(
            TRACKING_FAILED,
            f"MLflow at {config.tracking.uri} does not take a run ({cause_of(error)}); start it, "
            "or name another one with --tracking.",
        ) from error


def _train(attempt: Attempt, client: MlflowClient) -> Outcome:
    state = RunState()
    writer = RunWriter(client, attempt.run_id)
    writer.start()
    try:
        with _display() as display, _stopping_by_signal(attempt.folders.stop_file):
            return run_first_rank(
                attempt,
                Reporting(state=state, writer=writer, display=display),
                ranks=Ranks(rank=0, world_size=1, device=choose_device(0)),
            )
    except Exception as error:  # the worker loop's edge: whatever it is becomes an outcome
        if isinstance(error, StopRequestedError):
            log.info("%s", error)
        else:
            log.exception("run failed")
        return outcome_of_error(error, step=state.step, checkpoint=state.checkpoint)
    finally:
        writer.close()


@contextlib.contextmanager
def _display() -> Iterator[Observer]:
    console = terminal.stderr()
    if not console.is_terminal:
        yield LineDisplay(console)
        return
    with BarDisplay(console) as bar:
        yield bar


@contextlib.contextmanager
def _stopping_by_signal(stop_file: Path) -> Iterator[None]:
    """First SIGINT or SIGTERM: save a checkpoint and stop. Second: stop at once."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            raise KeyboardInterrupt
        stop_file.touch()
        terminal.stderr().print("saving a checkpoint; once more stops at once")

    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _keep(
    folder: BlobFolder,
    config: RunConfig,
    outcome: Outcome,
    *,
    number: int,
    logs: Sequence[Path],
) -> None:
    """Leave outcome and logs in the output folder, as a pod does, and what the file asked for."""
    name = attempt_folder(number)
    asked = json.dumps(config.pipeline.to_data(), indent=2)
    try:
        folder.write(f"{name}/{CONFIG_NAME}", asked.encode())
        for path in logs:
            store_log(path, folder, name=f"{name}/{path.name}")
        data = outcome.model_dump_json(exclude_none=True, indent=2)
        folder.write(f"{name}/outcome.json", data.encode())
    except (PipelineError, OSError) as error:
        log.warning("outcome and log could not be stored: %s", error)


def _note(config: RunConfig, outcome: Outcome) -> str | None:
    """What the run's page says of an end that left no summary."""
    if outcome.outcome_class is OutcomeClass.DONE:
        return None
    if outcome.outcome_class is OutcomeClass.INTERRUPTED:
        resume = _NOTE_UNFINISHED.format(folder=config.output_uri)
        return f"**Interrupted, not failed.** {outcome.message}\n\n{resume}"
    return f"**{outcome.reason}.** {outcome.message}"


def _page_of(client: MlflowClient, run_id: str) -> str | None:
    """The path of the run's page; the end of a run does not hang on it."""
    try:
        with tell_outage_apart():
            experiment = client.get_run(run_id).info.experiment_id
    except (UnreachableError, MlflowException) as error:
        log.warning("the page of the run is not known: %s", error)
        return None
    return run_page(experiment_id=experiment, run_id=run_id)


def _report(
    config: RunConfig, outcome: Outcome, *, run_id: str | None, page: str | None = None
) -> int:
    if outcome.outcome_class is OutcomeClass.DONE and run_id is not None:
        print_closing(terminal.stdout(), config, outcome, page=page)
    elif outcome.outcome_class is OutcomeClass.INTERRUPTED:
        terminal.stderr().print(f"{outcome.message} Run the same command again.", markup=False)
    else:
        terminal.fail(outcome.message)
        if run_id is not None and outcome.outcome_class is OutcomeClass.INFRASTRUCTURE:
            terminal.stderr().print(f"log: {config.output_uri}/logs", markup=False)
    return _EXIT_CODES[outcome.outcome_class]
