"""One accepted, unfinished job under decision, and what several checks do with it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.reasons import ConditionType, Reason
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.closing import TRACKING_RETRY_SECONDS, close_run, state_of_failure
from anneal_operator.draft import Draft, EnsureRun
from anneal_operator.observation import Input
from anneal_operator.stored_config import digest_of, run_config
from anneal_operator.waiting import waiting_for


@dataclass(frozen=True, slots=True)
class Case:
    """A draft of the status, with the spec and the profile it is decided by."""

    draft: Draft
    spec: FineTuneJobSpec
    profile: FineTuneProfileSpec
    """The snapshot, not the profile as it is now."""

    @property
    def seen(self) -> Input:
        return self.draft.seen

    def run_known(self) -> bool:
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
        if tracking.error is not None and tracking.fault == "Rejected":
            self.fail(reason=Reason.INVALID_SPEC, message=f"{tracking.error.rstrip('.')}.")
            return False
        self.draft.actions.append(EnsureRun())
        self.draft.look_again(TRACKING_RETRY_SECONDS)
        if tracking.error is not None:
            message = (
                f"{self.tracking_trouble(tracking.error)}; training starts only once it has the "
                "run, and the job then goes on by itself."
            )
            self.provisioned("False", reason=Reason.TRACKING_UNREACHABLE, message=message)
        return False

    def record_config(self) -> None:
        """Before the first attempt: what job.json will say. Later operators keep to it.

        What was recorded and never stored, because the operator was replaced in between, binds
        nobody: it is recorded anew, as long as no attempt has had a child.
        """
        if self.draft.status.config_digest is not None and not self._config_was_never_stored():
            return
        config = run_config(
            self.seen.job,
            spec=self.spec,
            profile=self.profile,
            output_uri=str(self.draft.status.output_uri),
            release=self.seen.release,
        )
        self.draft.change(config_digest=digest_of(config.to_text()))

    def _config_was_never_stored(self) -> bool:
        refusal, status = self.seen.refusal, self.draft.status
        if refusal is None or not refusal.is_config_missing:
            return False
        was_used = self.seen.pods or status.start_time is not None
        return not was_used and all(attempt.child_uid is None for attempt in status.attempts)

    def tracking_trouble(self, error: str) -> str:
        """What is wrong between the operator and MLflow, and who mends it; no full stop."""
        server = f"MLflow at {self.profile.tracking.uri}"
        if self.seen.tracking.fault == "Silent":
            return f"{server} does not answer as it should: {error}"
        return (
            f"{server} does not take calls of the operator: {error}; the administrator must "
            "correct the server's rights, or its entry in the chart's tracking.servers"
        )

    def say_waiting(self) -> None:
        """Say what the attempt waits for."""
        attempt = self.draft.attempt
        pod = self.seen.pod_of(attempt.number) if attempt else None
        wait = waiting_for(
            pod,
            hint=self.seen.hint,
            refusal=None if self._config_was_never_stored() else self.seen.refusal,
            image=self.profile.images.trainer,
        )
        self.provisioned("False", reason=wait.reason, message=wait.message)
        self.not_running(message=wait.message, reason=wait.reason)

    def fail(self, *, reason: str, message: str) -> None:
        draft = self.draft
        draft.condition(ConditionType.FAILED, "True", reason=reason, message=message)
        draft.condition(ConditionType.SUCCEEDED, "False", reason=reason, message=message)
        self.not_running(message="The job has finished.", reason=reason)
        draft.change(completion_time=self.seen.now)
        close_run(draft, state_of_failure(draft))

    def provisioned(self, truth: str, *, reason: str, message: str) -> None:
        self.draft.condition(
            ConditionType.PROVISIONED,
            "True" if truth == "True" else "False",
            reason=reason,
            message=message,
        )

    def not_running(self, *, message: str, reason: str = Reason.BACKING_OFF) -> None:
        self.draft.condition(ConditionType.RUNNING, "False", reason=reason, message=message)
