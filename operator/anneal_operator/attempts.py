"""The life of attempts: how one begins, what is seen of it, how it ends and what that costs. Pure.

An attempt whose class is set and whose end is not is being stopped: the child has been told to go,
and its class is why. It ends only when every pod of it is gone or over.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from anneal_operator.api.names import attempt_name
from anneal_operator.api.outcome import Outcome, OutcomeClass
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.reasons import ConditionType, Reason
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.status import ATTEMPTS_KEPT, Attempt, CheckpointStatus, Progress
from anneal_operator.classify import AttemptClass, Verdict, classify
from anneal_operator.draft import Draft
from anneal_operator.observation import Pod
from anneal_pipeline.config.schema import ConfigError

BACKOFF_SECONDS_MAX = 3600
_CHECKPOINT_NAME = re.compile(r"step-(?P<step>\d{1,9})-")
_CHECKPOINT_ATTEMPT = re.compile(r"step-\d+-a(?P<attempt>\d+)")
INTERRUPTIONS_MAX = 2
"""So many interruptions in a row without a newer checkpoint count as infrastructure."""


def resume_point(draft: Draft) -> CheckpointStatus | None:
    """The checkpoint that the next attempt goes on from; None if it starts from step 0."""
    spec = draft.seen.spec
    if isinstance(spec, ConfigError) or spec.checkpoint.resume == "Never":
        return None
    return draft.status.checkpoint


def begin(draft: Draft) -> int:
    """Record the intent of the next attempt and return its number."""
    job, status = draft.seen.job, draft.status
    number = status.attempt + 1
    checkpoint = resume_point(draft)
    attempt = Attempt(
        number=number,
        child=attempt_name(job.name, job.uid, number),
        resumed_from_step=checkpoint.step if checkpoint else None,
    )
    draft.change(attempt=number, attempts=(*status.attempts, attempt)[-ATTEMPTS_KEPT:])
    return number


def absorb(draft: Draft) -> None:
    """Take what pods and reports tell into the status."""
    attempt = draft.attempt
    if attempt is None or attempt.ended is not None:
        return
    if draft.seen.child is not None:
        draft.change_attempt(child_uid=draft.seen.child.uid)
    pod = draft.seen.pod_of(attempt.number)
    if pod is not None:
        draft.change_attempt(
            pod=pod.name,
            node=pod.node or attempt.node,
            started=attempt.started or pod.started,
        )
        if pod.started is not None and draft.status.start_time is None:
            draft.change(start_time=pod.started)
    _absorb_report(draft)
    if pod is not None and pod.termination is not None:
        draft.change_attempt(exit_code=pod.termination.exit_code)
        _absorb_outcome(draft, pod.termination.outcome)


def _absorb_report(draft: Draft) -> None:
    report = draft.seen.report
    if report is None:
        return
    told, trainer = report.body.anneal, report.body.trainer_status
    if draft.attempt is not None and told.attempt != draft.attempt.number:
        # The last words of the attempt before.
        return
    old = draft.status.progress or Progress()
    percent = trainer.progress_percentage
    draft.change(
        progress=Progress(
            percent=old.percent if percent is None else percent,
            stage=told.stage.name if told.stage else old.stage,
            step=told.step if told.step is not None else old.step,
            total_steps=told.total_steps if told.total_steps is not None else old.total_steps,
            loss=told.loss if told.loss is not None else old.loss,
            eta_seconds=trainer.estimated_remaining_seconds,
            heartbeat=report.worked_at,
        )
    )
    if told.step is not None:
        draft.change_attempt(last_step=told.step)
    # A lower step than before is the truth too: the trainer went back. Only after the outcome is
    # the report, which may be looked at again, the older of the two.
    is_newest = draft.attempt is None or draft.attempt.outcome is None
    if told.checkpoint is not None and told.checkpoint_step is not None and is_newest:
        _checkpoint(draft, CheckpointStatus(name=told.checkpoint, step=told.checkpoint_step))
    _absorb_outcome(draft, told.outcome)


def _absorb_outcome(draft: Draft, outcome: Outcome | None) -> None:
    """Keep the first outcome that arrives: the report outranks the termination log."""
    if outcome is None or draft.attempt is None or draft.attempt.outcome is not None:
        return
    draft.change_attempt(outcome=outcome, last_step=outcome.step or draft.attempt.last_step)
    if outcome.metrics:
        draft.change(metrics=dict(outcome.metrics))
    saved = _CHECKPOINT_NAME.match(outcome.checkpoint or "")
    if saved is not None:
        # The one saved on the way out: no progress report told of it any more.
        _checkpoint(draft, CheckpointStatus(name=saved.string, step=int(saved["step"])))
    if outcome.outcome_class is OutcomeClass.DONE and outcome.model_version:
        name, _, version = outcome.model_version.rpartition("/")
        draft.change_mlflow(model_name=name, model_version=version)


def _checkpoint(draft: Draft, found: CheckpointStatus) -> None:
    draft.change(checkpoint=found)
    draft.condition(
        ConditionType.CHECKPOINT_AVAILABLE,
        "True",
        reason=Reason.CHECKPOINT_SAVED,
        message=f"Checkpoint {found.name} at step {found.step} is complete.",
    )


def mark_stopping(
    draft: Draft, attempt_class: AttemptClass, *, reason: Reason, message: str
) -> None:
    """Record why the current attempt is being stopped, before it is."""
    draft.change_attempt(attempt_class=attempt_class, reason=reason, message=message)


def conclude(draft: Draft, *, profile: FineTuneProfileSpec, spec: FineTuneJobSpec) -> None:
    """The attempt's pods are gone or over: record its end and count its time."""
    attempt = draft.attempt
    if attempt is None:
        raise AssertionError("there is no attempt to conclude")
    pod = draft.seen.pod_of(attempt.number)
    verdict = _verdict(draft, attempt, pod)
    ended = _ended_at(pod, now=draft.seen.now)
    seconds = max(0.0, (ended - attempt.started).total_seconds()) if attempt.started else 0.0
    gpus = spec.compute.gpus_per_worker
    gpus = profile.resources.gpus_per_worker if gpus is None else gpus
    draft.change_attempt(
        ended=ended,
        attempt_class=verdict.attempt_class,
        reason=verdict.reason,
        message=verdict.message[:1024],
    )
    draft.change(
        active_seconds=draft.status.active_seconds + seconds,
        gpu_seconds=draft.status.gpu_seconds + seconds * gpus * spec.compute.workers,
    )
    _count_interruptions(draft, verdict)


def _verdict(draft: Draft, attempt: Attempt, pod: Pod | None) -> Verdict:
    found = classify(outcome=attempt.outcome, pod=pod, child=draft.seen.child)
    if attempt.attempt_class is None or found.attempt_class in ("Done", "User"):
        # It finished, or failed by itself, before the stop reached it.
        return found
    return Verdict(
        attempt_class=attempt.attempt_class,
        reason=attempt.reason or found.reason,
        message=attempt.message or found.message,
    )


def _ended_at(pod: Pod | None, *, now: datetime) -> datetime:
    if pod is not None and pod.termination is not None and pod.termination.finished is not None:
        return pod.termination.finished
    return now


def _count_interruptions(draft: Draft, verdict: Verdict) -> None:
    """Two interruptions in a row that saved nothing new are no interruptions any more.

    With checkpoint.resume Never nothing that was saved is of use to the next attempt.
    """
    attempt = draft.attempt
    if attempt is None or verdict.attempt_class != "Preemption":
        draft.change_spent(interruptions_without_checkpoint=0)
        return
    if _saved_something(attempt, resume_point(draft)):
        draft.change_spent(interruptions_without_checkpoint=0)
        return
    in_a_row = draft.spent.interruptions_without_checkpoint + 1
    draft.change_spent(interruptions_without_checkpoint=in_a_row)
    if in_a_row >= INTERRUPTIONS_MAX:
        draft.change_attempt(
            attempt_class="Infrastructure",
            message=f"{verdict.message[:900]} It was interruption {in_a_row} in a row without a "
            "newer checkpoint to go on from, and so counts as infrastructure.",
        )


def _saved_something(attempt: Attempt, checkpoint: CheckpointStatus | None) -> bool:
    """Training that went back saves steps below the one it resumed from: they are new as well."""
    if checkpoint is None:
        return False
    before = -1 if attempt.resumed_from_step is None else attempt.resumed_from_step
    saved_by = _CHECKPOINT_ATTEMPT.match(checkpoint.name)
    is_own = saved_by is not None and int(saved_by["attempt"]) == attempt.number
    return is_own or checkpoint.step > before


def spend(draft: Draft, *, spec: FineTuneJobSpec) -> bool:
    """Pay for a retry out of the ended attempt's budget; False if there is nothing left."""
    attempt = draft.attempt
    if attempt is None:
        raise AssertionError("there is no attempt to repeat")
    spent, retry = draft.spent, spec.retry
    match attempt.attempt_class:
        case "Preemption":
            budget, used, name = retry.preemption, spent.preemption, "preemption"
        case "User":
            budget, used, name = retry.user, spent.user, "user"
        case "Infrastructure":
            budget, used, name = retry.infrastructure, spent.infrastructure, "infrastructure"
        case _:
            return True
    if budget != -1 and used >= budget:
        return False
    draft.change_spent(**{name: used + 1})
    return True


def starts_at(draft: Draft, *, spec: FineTuneJobSpec) -> datetime:
    """When the next attempt may begin: the pause doubles with every failure that was retried."""
    attempt = draft.attempt
    if attempt is None or attempt.ended is None or attempt.attempt_class == "Suspension":
        return draft.seen.now
    failures = draft.spent.infrastructure + draft.spent.user
    if attempt.attempt_class == "Preemption":
        failures = 1
    doubled = spec.retry.backoff_seconds * 2.0 ** min(max(failures - 1, 0), 20)
    return attempt.ended + timedelta(seconds=min(doubled, BACKOFF_SECONDS_MAX))
