"""Decisions while no attempt is under way: begin the next one, wait, succeed or fail. Pure."""

from __future__ import annotations

from datetime import datetime

from anneal_operator import attempts
from anneal_operator.api.reasons import ConditionType, Reason
from anneal_operator.api.status import Attempt, Progress
from anneal_operator.case import Case
from anneal_operator.closing import TRACKING_RETRY_SECONDS, close_run
from anneal_operator.conditions import find
from anneal_operator.deadlines import passed_deadline
from anneal_operator.draft import CheckDigest, CreateChild
from anneal_operator.under_way import WAITING_SECONDS


def settle(case: Case) -> bool:
    """An attempt has just ended: True if another one may follow."""
    attempt = case.draft.attempt
    if attempt is None or attempt.attempt_class in ("Done", "Deadline", "Suspension"):
        return True
    if attempts.spend(case.draft, spec=case.spec):
        return True
    used_up = attempt.attempt_class != "User" and case.draft.status.attempt > 1
    cause = f"{attempt.message or attempt.reason}"
    if used_up:
        name = str(attempt.attempt_class).lower()
        budget = getattr(case.spec.retry, name)
        cause = (
            f"Attempt {attempt.number} failed and retry.{name} ({budget}) is used up. "
            f"Last cause ({attempt.reason}): {cause}"
        )
    case.fail(reason=Reason.RETRIES_EXHAUSTED if used_up else str(attempt.reason), message=cause)
    return False


def between(case: Case) -> None:
    attempt = case.draft.attempt
    if attempt is not None and attempt.attempt_class == "Done":
        _finish(case, attempt)
        return
    if attempt is not None and attempt.attempt_class == "Deadline":
        case.fail(reason=str(attempt.reason), message=str(attempt.message))
        return
    if case.spec.suspend:
        _suspended(case)
        return
    _resumed(case)
    late = passed_deadline(case, None)
    if late is not None:
        reason, message = late
        case.fail(reason=reason, message=message)
        return
    if not case.run_known():
        return
    starts_at = attempts.starts_at(case.draft, spec=case.spec)
    if starts_at > case.seen.now:
        _back_off(case, starts_at)
        return
    if case.seen.pods_running:
        # A pod of an earlier attempt still writes: two attempts must never be alive at once.
        case.draft.look_again(WAITING_SECONDS)
        return
    case.record_config()
    number = attempts.begin(case.draft)
    old = case.draft.status.progress
    if old is not None:
        case.draft.change(progress=Progress(step=old.step, total_steps=old.total_steps))
    case.say_waiting()
    case.draft.actions.append(CreateChild(number))


def _suspended(case: Case) -> None:
    message = "The job holds no resources; set spec.suspend to false to go on."
    if case.draft.status.attempt:
        message = f"{message} It then starts {_from_where(case)}."
    case.draft.condition(ConditionType.SUSPENDED, "True", reason=Reason.SUSPENDED, message=message)
    case.provisioned("False", reason=Reason.SUSPENDED, message=message)
    case.not_running(message=message, reason=Reason.SUSPENDED)


def _resumed(case: Case) -> None:
    found = find(case.draft.status.conditions, ConditionType.SUSPENDED)
    if found is not None and found.reason != Reason.RESUMED:
        case.draft.condition(
            ConditionType.SUSPENDED,
            "False",
            reason=Reason.RESUMED,
            message="The suspension is over.",
        )


def _back_off(case: Case, starts_at: datetime) -> None:
    attempt, status = case.draft.attempt, case.draft.status
    wait = (starts_at - case.seen.now).total_seconds()
    cause = f"{attempt.message}" if attempt else ""
    message = (
        f"{cause} Attempt {status.attempt + 1} starts at {starts_at:%H:%M:%S} UTC "
        f"{_from_where(case)}."
    )
    case.provisioned("False", reason=Reason.BACKING_OFF, message=message)
    case.not_running(message=message, reason=Reason.BACKING_OFF)
    case.draft.look_again(wait)


def _from_where(case: Case) -> str:
    """Where the next attempt starts, in words that promise no more than spec.checkpoint does."""
    checkpoint = attempts.resume_point(case.draft)
    if checkpoint is not None:
        return f"from step {checkpoint.step}"
    never = case.spec.checkpoint.resume == "Never"
    return "from step 0 (checkpoint.resume is Never)" if never else "from step 0"


def _finish(case: Case, attempt: Attempt) -> None:
    """The trainer says it is done: believe it once the registry says the same."""
    outcome, mlflow = attempt.outcome, case.draft.status.mlflow
    if outcome is None or mlflow is None or not mlflow.model_name or not mlflow.model_version:
        raise AssertionError("an attempt is Done only with a registered version")
    digest = case.seen.tracking.digest
    if digest is None:
        case.draft.actions.append(
            CheckDigest(model_name=mlflow.model_name, model_version=mlflow.model_version)
        )
        case.draft.look_again(TRACKING_RETRY_SECONDS)
        error = case.seen.tracking.error
        case.not_running(
            message="Training is done; the registered version is being compared with it"
            + (f". {case.tracking_trouble(error)}." if error else "."),
            reason=Reason.TRACKING_UNREACHABLE if error else Reason.RUNNING,
        )
        return
    version = f"{mlflow.model_name} version {mlflow.model_version}"
    if digest != outcome.artefact_digest:
        case.fail(
            reason=Reason.DIGEST_MISMATCH,
            message=f"The registered {version} carries the artefact digest "
            f"{digest or '(none)'}, and this job made {outcome.artefact_digest}; find out who "
            "wrote to the registered model. The job's files are untouched.",
        )
        return
    case.draft.condition(
        ConditionType.REGISTERED,
        "True",
        reason=Reason.REGISTERED,
        message=f"Registered as {version} with alias {case.spec.tracking.alias}.",
    )
    if not close_run(case.draft, "FINISHED"):
        return
    _succeed(case, version)


def _succeed(case: Case, version: str) -> None:
    draft = case.draft
    draft.condition(
        ConditionType.SUCCEEDED,
        "True",
        reason=Reason.SUCCEEDED,
        message=f"The model is trained, stored at {draft.status.output_uri} and registered as "
        f"{version}.",
    )
    case.not_running(message="The job has finished.", reason=Reason.SUCCEEDED)
    draft.change(completion_time=case.seen.now)
