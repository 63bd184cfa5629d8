"""One attempt of a job, in the processes that train: fetch, run the pipeline, store, register.

The same function serves the first Ray Train worker and `anneal run`. It returns an outcome;
`UserError` and `InfrastructureError` pass through to whoever called, who turns them into one. The
other ranks share the first one's disk, and only train along.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from anneal_jobs.attempt import Attempt
from anneal_jobs.errors import (
    INTERRUPTED,
    StaleAttemptError,
    StorageUnreachableError,
)
from anneal_jobs.event_log import EVENTS_NAME, EventLog
from anneal_jobs.inputs import Inputs, Place, fetch_inputs, find_place, open_place
from anneal_jobs.observer import (
    STAGE_DOWNLOAD,
    STAGE_REGISTER,
    STAGE_UPLOAD,
    RunObserver,
    StopObserver,
)
from anneal_jobs.progress import ProgressReporter
from anneal_jobs.run_state import RunState
from anneal_jobs.storage.access import s3_settings_of
from anneal_jobs.storage.meter import OnBytes
from anneal_jobs.storage.outputs import (
    ARTEFACTS_NAME,
    CHECKPOINTS_NAME,
    OutputUploader,
    restore_workspace,
)
from anneal_jobs.storage.places import open_folder
from anneal_jobs.tracking.run_record import RunRecord
from anneal_jobs.tracking.system_metrics import SystemSampler
from anneal_jobs.tracking.writer import RunWriter
from anneal_operator.api.outcome import Outcome, OutcomeClass
from anneal_pipeline.checkpoint.manifest import sha256_of
from anneal_pipeline.checkpoint.store import CheckpointStore
from anneal_pipeline.errors import DOES_NOT_FIT, StopRequestedError, UserError
from anneal_pipeline.observer import EVENT_CHECKPOINT_REJECTED, Observer
from anneal_pipeline.stages import PipelineResult, run_pipeline
from anneal_pipeline.training.ranks import Ranks

log = logging.getLogger(__name__)

FLUSH_SECONDS = 60.0
_LAST_UPLOADS_SECONDS = 5.0
"""For what a stopping attempt has queued; its checkpoint is stored already."""
_OUT_OF_MEMORY = (
    "The accelerator ran out of memory: lower training.microBatchSize or training.sequenceLength, "
    "or set training.gradientCheckpointing"
)


def checkpoint_store(
    attempt: Attempt, place: Place, *, rank: int, on_rejected: Callable[[str, str], None]
) -> CheckpointStore:
    """The job's checkpoints; each rank keeps its verified copies apart."""
    return CheckpointStore(
        open_folder(place.uri.child(CHECKPOINTS_NAME), s3_settings_of(attempt.config)),
        scratch=attempt.folders.checkpoints / f"rank-{rank}",
        attempt=attempt.number,
        writer=attempt.writer_name,
        keep=attempt.config.pipeline.checkpoint.keep,
        on_rejected=on_rejected,
    )


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """Who hears of the run, besides the files it leaves."""

    state: RunState
    writer: RunWriter
    reporter: ProgressReporter | None = None
    display: Observer | None = None


def run_first_rank(
    attempt: Attempt,
    reporting: Reporting,
    *,
    ranks: Ranks,
) -> Outcome:
    """The whole attempt, as rank 0 sees it."""
    state = reporting.state
    place = find_place(attempt)
    inputs = ranks.share(lambda: _fetch(attempt, state))
    record = RunRecord(attempt.config, attempt=attempt.number)
    uploader = _start_uploader(place, state)
    events = EventLog(
        attempt.folders.logs / EVENTS_NAME, run=attempt.run_id, attempt=attempt.number
    )
    observer = RunObserver(
        state=state,
        stop_file=attempt.folders.stop_file,
        writer=reporting.writer,
        reporter=reporting.reporter,
        uploader=uploader,
        display=reporting.display,
        workspace=place.workspace,
        events=events,
        num_ranks=ranks.world_size,
    )
    record.begin(reporting.writer, model_digest=inputs.model.digest)
    sampler = SystemSampler(reporting.writer, step=lambda: state.step or 0)
    try:
        sampler.start()
        result = _train(attempt, place, inputs, observer=observer, ranks=ranks)
    except StopRequestedError:
        _require_newest(reporting)
        raise
    finally:
        sampler.close()
    observer.memory.enter(STAGE_REGISTER)
    _require_newest(reporting)
    _end_uploads(uploader, place, result)
    if result.interrupted:
        return _interrupted(result)
    return _finish(reporting, record, result, model_digest=inputs.model.digest)


def run_other_rank(attempt: Attempt, *, ranks: Ranks) -> None:
    """Train along with the first rank on what that one has fetched."""
    place = find_place(attempt)
    inputs = ranks.share(lambda: _fetch(attempt, RunState()))
    observer = StopObserver(stop_file=attempt.folders.stop_file, num_ranks=ranks.world_size)
    _train(attempt, place, inputs, observer=observer, ranks=ranks)


def _fetch(attempt: Attempt, state: RunState) -> Inputs:
    place = open_place(attempt)
    on_bytes = _download_bytes(state, attempt.folders.stop_file)
    if not place.is_local:
        restore_workspace(place.folder, place.workspace, on_bytes=on_bytes)
    return fetch_inputs(attempt, workspace=place.workspace, on_bytes=on_bytes)


def _train(
    attempt: Attempt, place: Place, inputs: Inputs, *, observer: Observer, ranks: Ranks
) -> PipelineResult:
    try:
        return run_pipeline(
            attempt.config.pipeline,
            workspace=place.workspace,
            model_dir=inputs.model.folder,
            dataset_files=inputs.dataset,
            checkpoints=checkpoint_store(
                attempt, place, rank=ranks.rank, on_rejected=_rejection_event(observer)
            ),
            observer=observer,
            device=ranks.device,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
    except torch.OutOfMemoryError as error:
        raise UserError(DOES_NOT_FIT, f"{_OUT_OF_MEMORY} ({error})") from error


def _require_newest(reporting: Reporting) -> None:
    """Tell a stop because of a newer attempt from one that was asked for."""
    if reporting.reporter is not None and reporting.reporter.is_stale:
        raise StaleAttemptError


def _start_uploader(place: Place, state: RunState) -> OutputUploader | None:
    if place.is_local:
        return None
    uploader = OutputUploader(
        place.folder, workspace=place.workspace, on_bytes=_stage_bytes(state, STAGE_UPLOAD)
    )
    uploader.start()
    return uploader


def _end_uploads(uploader: OutputUploader | None, place: Place, result: PipelineResult) -> None:
    if uploader is None:
        return
    if result.interrupted:
        uploader.give_up_after(_LAST_UPLOADS_SECONDS)
        return
    uploader.finish()
    verify_artefacts(place, result)


def verify_artefacts(place: Place, result: PipelineResult) -> None:
    """Read the artefact manifest back from where it was stored and compare it."""
    local = place.workspace / ARTEFACTS_NAME / "manifest.json"
    stored = place.folder.read(f"{ARTEFACTS_NAME}/manifest.json")
    if stored != local.read_bytes() or sha256_of(local) != result.artefact_digest:
        raise StorageUnreachableError(
            f"The artefact manifest read back from the output folder is not the one written "
            f"(SHA-256 {result.artefact_digest}); the storage or another writer changed it."
        )


def _finish(
    reporting: Reporting, record: RunRecord, result: PipelineResult, *, model_digest: str
) -> Outcome:
    reporting.state.set_stage(STAGE_REGISTER, done=0, total=1, unit="versions")
    record.end(reporting.writer, result)
    if not reporting.writer.flush(within_seconds=FLUSH_SECONDS):
        log.warning("MLflow has not taken all points; the registration will tell whether it can")
    if result.adapter_dir is None:
        raise RuntimeError("the pipeline ended without an adapter")
    version = record.register(
        reporting.writer, result, adapter_dir=result.adapter_dir, model_digest=model_digest
    )
    reporting.writer.flush(within_seconds=FLUSH_SECONDS)
    return Outcome(
        outcome_class=OutcomeClass.DONE,
        reason="Trained",
        message=f"Trained {result.step} steps and registered {version}.",
        step=result.step,
        checkpoint=result.checkpoint,
        artefact_digest=f"sha256:{result.artefact_digest}" if result.artefact_digest else None,
        model_version=version,
        metrics=record.final_metrics(result),
    )


def _interrupted(result: PipelineResult) -> Outcome:
    saved = (
        f"checkpoint {result.checkpoint} is saved" if result.checkpoint else "nothing to save yet"
    )
    return Outcome(
        outcome_class=OutcomeClass.INTERRUPTED,
        reason=INTERRUPTED,
        message=f"Stopped on request at step {result.step}: {saved}; the next attempt goes on.",
        step=result.step,
        checkpoint=result.checkpoint,
    )


def _stage_bytes(state: RunState, stage: str) -> OnBytes:
    return lambda done, total: state.set_stage(stage, done=done, total=total, unit="bytes")


def _download_bytes(state: RunState, stop_file: Path) -> OnBytes:
    """Report what has been fetched, and end the transfer where a stop was asked for."""

    def report(done: int, total: int) -> None:
        state.set_stage(STAGE_DOWNLOAD, done=done, total=total, unit="bytes")
        if stop_file.exists():
            raise StopRequestedError

    return report


def _rejection_event(observer: Observer) -> Callable[[str, str], None]:
    def tell(name: str, why: str) -> None:
        message = f"Checkpoint {name} was passed over: {why}."
        observer.on_event(EVENT_CHECKPOINT_REJECTED, message, {"checkpoint": name})

    return tell
