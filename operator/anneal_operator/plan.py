"""The decision about one job: a chain of checks from what is seen to what is to be done. Pure.

Nothing here reads a clock, a cache or the network; everything comes in by `Input`. The order of the
checks is the contract: a finished job is never looked at again, a stop waits for the pods, a child
is created only after the intent has been written, and success only after the registry agrees.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from anneal_operator import attempts
from anneal_operator.admission import output_uri, refusal
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.reasons import ConditionType, Reason
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.status import Attempt, ProfileSnapshot, Progress
from anneal_operator.conditions import find, finished, holds
from anneal_operator.draft import (
    CheckDigest,
    CloseRun,
    CreateChild,
    DeleteJob,
    Draft,
    EnsureRun,
    Plan,
    RunState,
    StopChild,
)
from anneal_operator.observation import Input
from anneal_operator.waiting import waiting_for
from anneal_pipeline.config.schema import ConfigError

WAITING_SECONDS = 15.0
"""How often a job is looked at again while it waits for something that sends no event."""
TRACKING_RETRY_SECONDS = 10.0
CLOSING_SECONDS_MAX = 3600
"""How long a time to live waits for an MLflow that does not answer."""


def plan(seen: Input) -> Plan:
    """Decide what to do about one job."""
    draft = Draft(seen=seen, status=seen.status)
    if seen.job.deleting:
        return Plan(status=seen.status)
    if finished(seen.status):
        _after_the_end(draft)
        return draft.plan()
    if seen.status.profile is None and not _accept(draft):
        return draft.plan()
    snapshot = draft.status.profile
    if snapshot is None or isinstance(seen.spec, ConfigError):
        # The spec was valid when it was accepted and cannot change; a newer operator may still
        # read it differently. Such a job is left alone and says so.
        message = str(seen.spec) if isinstance(seen.spec, ConfigError) else "no profile snapshot"
        draft.condition(
            ConditionType.ACCEPTED, "False", reason=Reason.INVALID_SPEC, message=message
        )
        return draft.plan()
    _Decision(draft, spec=seen.spec, profile=snapshot.spec).run()
    return draft.plan()


def _accept(draft: Draft) -> bool:
    seen = draft.seen
    refused = refusal(seen)
    if refused is not None:
        draft.condition(
            ConditionType.ACCEPTED, "False", reason=refused.reason, message=refused.message
        )
        return False
    profile = seen.profile
    if (
        profile is None
        or isinstance(profile.spec, ConfigError)
        or isinstance(seen.spec, ConfigError)
    ):
        raise AssertionError("refusal() lets only readable specs and profiles pass")
    draft.condition(
        ConditionType.ACCEPTED,
        "True",
        reason=Reason.ACCEPTED,
        message=f"The spec is in order; profile {profile.name} (generation {profile.generation}) "
        "applies to the whole job.",
    )
    draft.condition(
        ConditionType.SUCCEEDED, "Unknown", reason=Reason.ACCEPTED, message="Not finished yet."
    )
    draft.change(
        profile=ProfileSnapshot(
            name=profile.name, generation=profile.generation, spec=profile.spec
        ),
        output_uri=output_uri(seen.spec, profile.spec, job=seen.job),
    )
    return True


def _after_the_end(draft: Draft) -> None:
    """A finished job: close its run, then delete it when its time to live has passed."""
    seen, status = draft.seen, draft.status
    succeeded = holds(status.conditions, ConditionType.SUCCEEDED)
    closed = _close_run(draft, "FINISHED" if succeeded else _state_of_failure(draft))
    ttl = None if isinstance(seen.spec, ConfigError) else seen.spec.ttl_seconds_after_finished
    if ttl is None or status.completion_time is None:
        return
    due = status.completion_time + timedelta(seconds=ttl)
    if not closed:
        due += timedelta(seconds=CLOSING_SECONDS_MAX)
    if seen.now >= due and not seen.pods_running:
        draft.actions.append(DeleteJob())
    else:
        draft.look_again((due - seen.now).total_seconds())


def _state_of_failure(draft: Draft) -> RunState:
    """A run that the user's deadline ended was killed; every other failure is one."""
    failed = find(draft.status.conditions, ConditionType.FAILED)
    stopped = failed is not None and failed.reason in (
        Reason.ACTIVE_DEADLINE,
        Reason.PENDING_DEADLINE,
    )
    return "KILLED" if stopped else "FAILED"


def _close_run(draft: Draft, state: RunState) -> bool:
    """Have the run closed; True once it is, or if there is none."""
    mlflow, tracking = draft.status.mlflow, draft.seen.tracking
    if mlflow is None or mlflow.run_id is None or mlflow.run_closed is not None:
        return True
    if tracking.closed == state:
        draft.change_mlflow(run_closed=state)
        return True
    if not draft.seen.pods_running:
        draft.actions.append(CloseRun(run_id=mlflow.run_id, state=state))
    draft.look_again(TRACKING_RETRY_SECONDS)
    return False


class _Decision:
    """The checks on an accepted, unfinished job, in their order."""

    def __init__(
        self, draft: Draft, *, spec: FineTuneJobSpec, profile: FineTuneProfileSpec
    ) -> None:
        self.draft, self.spec, self.profile = draft, spec, profile
        self.seen = draft.seen

    def run(self) -> None:
        attempts.absorb(self.draft)
        attempt = self.draft.attempt
        if attempt is not None and attempt.ended is None:
            if not self._is_over(attempt):
                self._alive(attempt)
                return
            attempts.conclude(self.draft, profile=self.profile, spec=self.spec)
            self._not_running(message="The attempt is over.")
            if not self._settle():
                return
        self._between()

    # An attempt that has not ended.

    def _is_over(self, attempt: Attempt) -> bool:
        """Every pod of it is gone or over, and its child will make no other."""
        seen = self.seen
        if seen.pods_running:
            return False
        if seen.child is None:
            # Never created counts as not begun, unless it was on its way out.
            return attempt.pod is not None or attempt.attempt_class is not None
        return bool(seen.child.result) and not seen.child.deleting

    def _alive(self, attempt: Attempt) -> None:
        if attempt.attempt_class is None:
            self._maybe_stop(attempt)
        attempt = self.draft.attempt or attempt
        if attempt.attempt_class is not None:
            self._stopping(attempt)
            return
        if self.seen.child is None:
            if self.draft.status.mlflow is None and not self._run_known():
                return
            self._say_waiting(hint_for_pod=False)
            self.draft.actions.append(CreateChild(attempt.number))
            return
        pod = self.seen.pod_of(attempt.number)
        if pod is None or pod.started is None:
            self._say_waiting(hint_for_pod=True)
            self.draft.look_again(WAITING_SECONDS)
            return
        self._running(pod_name=pod.name, node=pod.node, attempt=attempt)

    def _maybe_stop(self, attempt: Attempt) -> None:
        if self.spec.suspend:
            attempts.mark_stopping(
                self.draft,
                "Suspension",
                reason=Reason.SUSPEND_REQUESTED,
                message="The job was suspended.",
            )
            return
        late = self._deadline(attempt)
        if late is not None:
            reason, message = late
            attempts.mark_stopping(self.draft, "Deadline", reason=reason, message=message)
            return
        silent = self._silent_seconds(attempt)
        limit = self.spec.deadlines.stall_seconds
        if silent is None:
            return
        if silent < limit:
            self.draft.look_again(limit - silent)
            return
        attempts.mark_stopping(
            self.draft,
            "Infrastructure",
            reason=Reason.STALLED,
            message=f"The trainer reported no work for {int(silent)} s "
            f"(deadlines.stallSeconds is {limit}) and counts as hung.",
        )

    def _deadline(self, attempt: Attempt | None) -> tuple[Reason, str] | None:
        """The deadline that has passed, if any; else come back when the next one does."""
        status, now, deadlines = self.draft.status, self.seen.now, self.spec.deadlines
        if status.start_time is None and deadlines.pending_seconds is not None:
            waited = (now - self._pending_since()).total_seconds()
            if waited >= deadlines.pending_seconds:
                return Reason.PENDING_DEADLINE, (
                    f"No pod ran within {deadlines.pending_seconds} s "
                    f"(deadlines.pendingSeconds){self._last_wait()}"
                )
            self.draft.look_again(deadlines.pending_seconds - waited)
        limits = (deadlines.active_seconds, self.profile.limits.active_seconds)
        limit = min((x for x in limits if x is not None), default=None)
        if limit is not None:
            running = attempt is not None and attempt.ended is None and attempt.started is not None
            active = status.active_seconds
            if running and attempt is not None and attempt.started is not None:
                active += (now - attempt.started).total_seconds()
            if active >= limit:
                return Reason.ACTIVE_DEADLINE, (
                    f"The attempts together ran {int(active)} s, and deadlines.activeSeconds "
                    f"allows {limit}; raise the deadline or train fewer steps. Checkpoints and "
                    "logs are kept."
                )
            if running:
                self.draft.look_again(limit - active)
        return None

    def _pending_since(self) -> datetime:
        """Since acceptance, or since the end of a suspension."""
        since = self.seen.job.created
        for kind in (ConditionType.ACCEPTED, ConditionType.SUSPENDED):
            found = find(self.draft.status.conditions, kind)
            if found is not None:
                since = max(since, found.last_transition_time)
        return since

    def _last_wait(self) -> str:
        found = find(self.draft.status.conditions, ConditionType.PROVISIONED)
        return f"; it waited for: {found.message}" if found else "."

    def _silent_seconds(self, attempt: Attempt) -> float | None:
        """Seconds without work, counted only while a leader listens to a running trainer."""
        if attempt.started is None or self.seen.serving_since is None:
            return None
        if attempt.outcome is not None:
            return None
        since = max(attempt.started, self.seen.serving_since)
        if self.seen.report is not None:
            since = max(since, self.seen.report.worked_at)
        return (self.seen.now - since).total_seconds()

    def _stopping(self, attempt: Attempt) -> None:
        child = self.seen.child
        if child is not None and not child.deleting:
            self.draft.actions.append(StopChild(child))
        if attempt.attempt_class == "Suspension":
            self.draft.condition(
                ConditionType.SUSPENDED,
                "False",
                reason=Reason.SUSPEND_REQUESTED,
                message="The trainer has been asked to save a checkpoint and stop; the GPUs are "
                "free when its pod is gone.",
            )
        self.draft.look_again(WAITING_SECONDS)

    def _say_waiting(self, *, hint_for_pod: bool) -> None:
        attempt = self.draft.attempt
        pod = self.seen.pod_of(attempt.number) if attempt else None
        wait = waiting_for(
            pod,
            hint=self.seen.hint if hint_for_pod else "",
            image=self.profile.images.trainer,
        )
        self._provisioned("False", reason=wait.reason, message=wait.message)
        self._not_running(message=wait.message, reason=wait.reason)

    def _running(self, *, pod_name: str, node: str | None, attempt: Attempt) -> None:
        where = f"pod {pod_name} on node {node}" if node else f"pod {pod_name}"
        self._provisioned(
            "True", reason=Reason.RUNNING, message=f"Attempt {attempt.number} has {where}."
        )
        resumed = (
            f", resumed from step {attempt.resumed_from_step}"
            if attempt.resumed_from_step is not None
            else ""
        )
        self.draft.condition(
            ConditionType.RUNNING,
            "True",
            reason=Reason.RUNNING,
            message=f"Attempt {attempt.number} runs in {where}{resumed}.",
        )

    # Between attempts.

    def _settle(self) -> bool:
        """An attempt has just ended: True if another one may follow."""
        attempt = self.draft.attempt
        if attempt is None or attempt.attempt_class in ("Done", "Deadline", "Suspension"):
            return True
        if attempts.spend(self.draft, spec=self.spec):
            return True
        used_up = attempt.attempt_class != "User" and self.draft.status.attempt > 1
        cause = f"{attempt.message or attempt.reason}"
        if used_up:
            name = str(attempt.attempt_class).lower()
            budget = getattr(self.spec.retry, name)
            cause = (
                f"Attempt {attempt.number} failed and retry.{name} ({budget}) is used up. "
                f"Last cause ({attempt.reason}): {cause}"
            )
        self._fail(
            reason=Reason.RETRIES_EXHAUSTED if used_up else str(attempt.reason), message=cause
        )
        return False

    def _between(self) -> None:
        attempt = self.draft.attempt
        if attempt is not None and attempt.attempt_class == "Done":
            self._finish(attempt)
            return
        if attempt is not None and attempt.attempt_class == "Deadline":
            self._fail(reason=str(attempt.reason), message=str(attempt.message))
            return
        if self.spec.suspend:
            self._suspended()
            return
        self._resumed()
        late = self._deadline(None)
        if late is not None:
            reason, message = late
            self._fail(reason=reason, message=message)
            return
        if not self._run_known():
            return
        starts_at = attempts.starts_at(self.draft, spec=self.spec)
        if starts_at > self.seen.now:
            self._back_off(starts_at)
            return
        if self.seen.pods_running:
            # A pod of an earlier attempt still writes: two attempts must never be alive at once.
            self.draft.look_again(WAITING_SECONDS)
            return
        number = attempts.begin(self.draft)
        old = self.draft.status.progress
        if old is not None:
            self.draft.change(progress=Progress(step=old.step, total_steps=old.total_steps))
        self._say_waiting(hint_for_pod=False)
        self.draft.actions.append(CreateChild(number))

    def _suspended(self) -> None:
        checkpoint = self.draft.status.checkpoint
        saved = f" It goes on from step {checkpoint.step}." if checkpoint else ""
        message = f"The job holds no resources; set spec.suspend to false to go on.{saved}"
        self.draft.condition(
            ConditionType.SUSPENDED, "True", reason=Reason.SUSPENDED, message=message
        )
        self._provisioned("False", reason=Reason.SUSPENDED, message=message)
        self._not_running(message=message, reason=Reason.SUSPENDED)

    def _resumed(self) -> None:
        found = find(self.draft.status.conditions, ConditionType.SUSPENDED)
        if found is not None and found.reason != Reason.RESUMED:
            self.draft.condition(
                ConditionType.SUSPENDED,
                "False",
                reason=Reason.RESUMED,
                message="The job goes on after a suspension.",
            )

    def _run_known(self) -> bool:
        """MLflow must know the run before the first attempt; without it the job waits."""
        status, tracking = self.draft.status, self.seen.tracking
        if status.mlflow is not None and status.mlflow.run_id is not None:
            return True
        if tracking.run is not None:
            run = tracking.run
            self.draft.change_mlflow(
                run_id=run.run_id, experiment_id=run.experiment_id, url=run.url
            )
            return True
        self.draft.actions.append(EnsureRun())
        self.draft.look_again(TRACKING_RETRY_SECONDS)
        if tracking.error is not None:
            message = (
                f"MLflow at {self.profile.tracking.uri} does not answer, and training starts only "
                f"once it has the run: {tracking.error}; the job goes on by itself when it is back."
            )
            self._provisioned("False", reason=Reason.TRACKING_UNREACHABLE, message=message)
        return False

    def _back_off(self, starts_at: datetime) -> None:
        attempt, status = self.draft.attempt, self.draft.status
        wait = (starts_at - self.seen.now).total_seconds()
        cause = f"{attempt.message}" if attempt else ""
        resume = f" from step {status.checkpoint.step}" if status.checkpoint else " from the start"
        message = (
            f"{cause} Attempt {status.attempt + 1} starts at {starts_at:%H:%M:%S} UTC{resume}."
        )
        self._provisioned("False", reason=Reason.BACKING_OFF, message=message)
        self._not_running(message=message, reason=Reason.BACKING_OFF)
        self.draft.look_again(wait)

    def _finish(self, attempt: Attempt) -> None:
        """The trainer says it is done: believe it once the registry says the same."""
        outcome, mlflow = attempt.outcome, self.draft.status.mlflow
        if outcome is None or mlflow is None or not mlflow.model_name or not mlflow.model_version:
            raise AssertionError("an attempt is Done only with a registered version")
        digest = self.seen.tracking.digest
        if digest is None:
            self.draft.actions.append(
                CheckDigest(model_name=mlflow.model_name, model_version=mlflow.model_version)
            )
            self.draft.look_again(TRACKING_RETRY_SECONDS)
            error = self.seen.tracking.error
            self._not_running(
                message="Training is done; the registered version is being compared with it"
                + (f", and MLflow does not answer: {error}." if error else "."),
                reason=Reason.TRACKING_UNREACHABLE if error else Reason.RUNNING,
            )
            return
        version = f"{mlflow.model_name} version {mlflow.model_version}"
        if digest != outcome.artefact_digest:
            self._fail(
                reason=Reason.DIGEST_MISMATCH,
                message=f"The registered {version} carries the artefact digest "
                f"{digest or '(none)'}, and this job made {outcome.artefact_digest}; find out who "
                "wrote to the registered model. The job's files are untouched.",
            )
            return
        self.draft.condition(
            ConditionType.REGISTERED,
            "True",
            reason=Reason.REGISTERED,
            message=f"Registered as {version} with alias {self.spec.tracking.alias}.",
        )
        if not _close_run(self.draft, "FINISHED"):
            return
        self._succeed(version)

    def _succeed(self, version: str) -> None:
        draft = self.draft
        draft.condition(
            ConditionType.SUCCEEDED,
            "True",
            reason=Reason.SUCCEEDED,
            message=f"The model is trained, stored at {draft.status.output_uri} and registered as "
            f"{version}.",
        )
        self._not_running(message="The job has finished.", reason=Reason.SUCCEEDED)
        draft.change(completion_time=self.seen.now)

    def _fail(self, *, reason: str, message: str) -> None:
        draft = self.draft
        draft.condition(ConditionType.FAILED, "True", reason=reason, message=message)
        draft.condition(ConditionType.SUCCEEDED, "False", reason=reason, message=message)
        self._not_running(message="The job has finished.", reason=reason)
        draft.change(completion_time=self.seen.now)
        _close_run(draft, _state_of_failure(draft))

    def _provisioned(self, truth: str, *, reason: str, message: str) -> None:
        self.draft.condition(
            ConditionType.PROVISIONED,
            "True" if truth == "True" else "False",
            reason=reason,
            message=message,
        )

    def _not_running(self, *, message: str, reason: str = Reason.BACKING_OFF) -> None:
        self.draft.condition(ConditionType.RUNNING, "False", reason=reason, message=message)
