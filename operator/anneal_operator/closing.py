"""The end of a finished job: its MLflow run is closed, and its time to live runs out. Pure."""

from __future__ import annotations

from datetime import timedelta

from anneal_operator.api.reasons import ConditionType, Reason
from anneal_operator.conditions import find, holds
from anneal_operator.draft import CloseRun, DeleteJob, Draft, RunState
from anneal_pipeline.config.schema import ConfigError

TRACKING_RETRY_SECONDS = 10.0
CLOSING_RETRY_SECONDS = 60.0
"""Nobody waits for the closing of a run, and many finished jobs may want it at once."""
CLOSING_SECONDS_MAX = 3600
"""How long a time to live waits for an MLflow that does not answer."""


def after_the_end(draft: Draft) -> None:
    """A finished job: close its run, then delete it when its time to live has passed."""
    seen, status = draft.seen, draft.status
    succeeded = holds(status.conditions, ConditionType.SUCCEEDED)
    closed = close_run(draft, "FINISHED" if succeeded else state_of_failure(draft))
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


def state_of_failure(draft: Draft) -> RunState:
    """A run that the user's deadline ended was killed; every other failure is one."""
    failed = find(draft.status.conditions, ConditionType.FAILED)
    stopped = failed is not None and failed.reason in (
        Reason.ACTIVE_DEADLINE,
        Reason.PENDING_DEADLINE,
    )
    return "KILLED" if stopped else "FAILED"


def close_run(draft: Draft, state: RunState) -> bool:
    """Have the run closed; True once it is, or if there is none."""
    mlflow, tracking = draft.status.mlflow, draft.seen.tracking
    if mlflow is None or mlflow.run_id is None or mlflow.run_closed is not None:
        return True
    if tracking.closed == state:
        draft.change_mlflow(run_closed=state)
        return True
    if not draft.seen.pods_running:
        draft.actions.append(CloseRun(run_id=mlflow.run_id, state=state))
    draft.look_again(CLOSING_RETRY_SECONDS if tracking.error else TRACKING_RETRY_SECONDS)
    return False
