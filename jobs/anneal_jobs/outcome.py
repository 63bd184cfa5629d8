"""From what happened to the one JSON object that says so, and where it is left."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from pydantic import ValidationError

from anneal_jobs.errors import (
    INTERRUPTED,
    RANK_FAILED,
    TRAINER_CRASHED,
    InfrastructureError,
)
from anneal_jobs.redaction import redact
from anneal_operator.api.outcome import MESSAGE_MAX, Outcome, OutcomeClass
from anneal_pipeline.errors import PipelineError, StopRequestedError, UserError

log = logging.getLogger(__name__)

_TERMINATION_BYTES_MAX = 4096
_BLANKS = re.compile(r"\s+")


def outcome_of_error(
    error: BaseException, *, step: int | None = None, checkpoint: str | None = None
) -> Outcome:
    """Say who has to act on an error and what to tell them."""
    outcome_class, reason = OutcomeClass.INFRASTRUCTURE, TRAINER_CRASHED
    message = str(error)
    if isinstance(error, UserError):
        outcome_class, reason = OutcomeClass.USER, error.reason
    elif isinstance(error, StopRequestedError):
        outcome_class, reason = OutcomeClass.INTERRUPTED, INTERRUPTED
    elif isinstance(error, InfrastructureError):
        reason = error.reason
    elif isinstance(error, PipelineError):
        reason = type(error).__name__.removesuffix("Error")
    else:
        message = f"The trainer crashed: {type(error).__name__}: {error}"
    return Outcome(
        outcome_class=outcome_class,
        reason=reason,
        message=one_sentence(message),
        step=step,
        checkpoint=checkpoint,
    )


def one_sentence(message: str) -> str:
    """One line of bounded length, without secrets."""
    line = redact(_BLANKS.sub(" ", message).strip())
    return line if len(line) <= MESSAGE_MAX else f"{line[: MESSAGE_MAX - 3]}..."


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Leave the outcome in a file, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(outcome.model_dump_json(exclude_none=True), encoding="utf-8")
    partial.rename(path)


def read_outcome(path: Path) -> Outcome | None:
    """The outcome in a file; None when there is none or it is damaged."""
    try:
        return Outcome.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("outcome file %s is damaged: %s", path, error)
        return None


def find_outcome(folder: Path) -> Outcome | None:
    """What the ranks left: a failure of any rank before the success of the first.

    That another rank failed is no cause while that other one says more.
    """
    found = [read_outcome(path) for path in sorted(folder.glob("rank-*.json"))]
    told = [outcome for outcome in found if outcome is not None]
    outcomes = [outcome for outcome in told if outcome.reason != RANK_FAILED] or told
    order = [OutcomeClass.USER, OutcomeClass.INFRASTRUCTURE]
    for outcome_class in order:
        for outcome in outcomes:
            if outcome.outcome_class is outcome_class:
                return outcome
    return outcomes[0] if outcomes else None


def write_termination_log(path: Path, outcome: Outcome) -> None:
    """Tell the kubelet; the file is a mount of its own, so it is written in place.

    Its size is limited, so the metrics go first where the whole would not fit.
    """
    text = outcome.model_dump_json(exclude_none=True)
    if len(text.encode()) > _TERMINATION_BYTES_MAX:
        text = outcome.model_copy(update={"metrics": {}}).model_dump_json(exclude_none=True)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        log.warning("termination log %s cannot be written: %s", path, error)
