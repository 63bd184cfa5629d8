"""The three clocks: pending, active, silence."""

from dataclasses import replace
from datetime import timedelta

from tests.unit.controller.conftest import (
    NOW,
    RUN,
    after,
    child,
    condition,
    pod,
    report,
    running,
    seen,
    spec,
)

from anneal_operator.api.reasons import ConditionType
from anneal_operator.draft import (
    CloseRun,
    StopChild,
)
from anneal_operator.plan import plan


def test_the_active_deadline_counts_all_attempts_and_stops_the_pod_first() -> None:
    limited = spec(deadlines={"activeSeconds": 100})
    current = running(spec=limited)
    current = replace(current, status=current.status.model_copy(update={"active_seconds": 69.0}))
    assert plan(current).again_seconds == 1
    late = replace(current, now=NOW + timedelta(seconds=1))
    decided = plan(late)
    assert decided.actions == (StopChild(child()),)
    assert condition(decided, ConditionType.FAILED) is None

    gone = replace(late, status=decided.status, child=None, pods=())
    decided = plan(gone)
    assert condition(decided, ConditionType.FAILED) == ("True", "ActiveDeadlineExceeded")
    assert CloseRun(run_id=RUN.run_id, state="KILLED") in decided.actions


def test_the_pending_deadline_names_what_was_waited_for() -> None:
    limited = spec(deadlines={"pendingSeconds": 60})
    stuck = pod(phase="Pending", node=None, started=None, unschedulable="0/1 nodes: no GPU")
    current = after({"child": child(), "pods": (stuck,)}, {}, start=seen(spec=limited))
    assert plan(current).again_seconds == 15
    late = replace(current, now=NOW + timedelta(seconds=60))
    decided = plan(late)
    assert decided.actions == (StopChild(child()),)
    decided = plan(replace(late, status=decided.status, child=None, pods=()))
    assert condition(decided, ConditionType.FAILED) == ("True", "PendingDeadlineExceeded")
    assert "no GPU" in decided.status.conditions[-1].message


def test_a_silent_trainer_counts_as_hung() -> None:
    limited = spec(deadlines={"stallSeconds": 600})
    current = replace(running(spec=limited), report=report(step=3, worked_at=NOW))
    assert plan(current).again_seconds == 600
    silent = replace(current, now=NOW + timedelta(seconds=600))
    decided = plan(silent)
    assert decided.actions == (StopChild(child()),)
    gone = replace(silent, status=decided.status, child=None, pods=())
    decided = plan(gone)
    assert decided.status.attempts[0].reason == "Stalled"
    assert decided.status.spent.infrastructure == 1


def test_the_stall_clock_starts_with_the_leader() -> None:
    limited = spec(deadlines={"stallSeconds": 600})
    quiet = replace(
        running(spec=limited),
        now=NOW + timedelta(hours=5),
        serving_since=NOW + timedelta(hours=5) - timedelta(seconds=100),
    )
    decided = plan(quiet)
    assert decided.actions == ()
    assert decided.again_seconds == 500
