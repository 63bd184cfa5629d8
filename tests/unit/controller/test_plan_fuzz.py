"""Random histories of one job: whatever happens and whenever the operator dies, some things hold.

The cluster is a small model: the operator's actions are carried out or lost (a crash between the
status write and the action), pods start and end in every way, users suspend and delete, and the
operator is replaced by one that writes configs otherwise.
"""

from dataclasses import replace
from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.controller.conftest import (
    DIGEST,
    JOB,
    NOW,
    RUN,
    child,
    ended_pod,
    outcome,
    pod,
    seen,
    spec,
)

from anneal_operator.api.reasons import Reason
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.status import FineTuneJobStatus
from anneal_operator.conditions import finished
from anneal_operator.draft import (
    Action,
    CheckDigest,
    CloseRun,
    CreateChild,
    DeleteJob,
    EnsureRun,
    StopChild,
)
from anneal_operator.observation import Child, Input, Pod, Refusal, Tracking
from anneal_operator.plan import plan
from anneal_operator.stored_config import digest_of, run_config

ENDINGS = {
    "done": {"code": 0, "outcome": outcome("Done")},
    "user": {"code": 65, "outcome": outcome("User")},
    "interrupted": {"code": 75, "outcome": outcome("Interrupted")},
    "crash": {"code": 1},
    "out of memory": {"code": 137, "container_reason": "OOMKilled"},
    "silent success": {"code": 0},
    "node lost": {"code": 137, "disruption": "DeletionByTaintManager"},
}


class History(RuleBasedStateMachine):
    """One FineTuneJob and what becomes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.status = FineTuneJobStatus()
        self.children: dict[int, Child] = {}
        self.ever_ran: set[int] = set()
        self.seen_by_operator: set[int] = set()
        self.pods: list[Pod] = []
        self.tracking = Tracking()
        self.suspend = False
        self.now = NOW
        self.end: FineTuneJobStatus | None = None
        self.deleted = False
        self.release = "first"
        self.stored_digest: str | None = None
        self.refusal: Refusal | None = None

    def picture_spec(self) -> FineTuneJobSpec:
        return spec(
            suspend=self.suspend,
            retry={"infrastructure": 2, "backoffSeconds": 5},
            deadlines={"activeSeconds": 5000, "stallSeconds": 900},
            ttlSecondsAfterFinished=86_400,
        )

    def picture(self) -> Input:
        current = self.status.attempt
        return seen(
            now=self.now,
            spec=self.picture_spec(),
            status=self.status,
            tracking=self.tracking,
            child=self.children.get(current),
            pods=tuple(self.pods),
            release=self.release,
            refusal=None if current in self.children else self.refusal,
        )

    @precondition(lambda self: not self.deleted)
    @rule(crash=st.booleans())
    def reconcile(self, crash: bool) -> None:
        self.seen_by_operator.update(self.children)
        decided = plan(self.picture())
        assert decided.status.attempt >= self.status.attempt
        self.status = decided.status
        if finished(self.status) and self.end is None:
            self.end = self.status
        if not crash:
            for action in decided.actions:
                self.carry_out(action)

    def carry_out(self, action: Action) -> None:
        match action:
            case CreateChild(number):
                assert not finished(self.status), "a child for a finished job"
                assert number == self.status.attempt
                assert number not in self.ever_ran or number in self.children
                if self.finds_config():
                    self.refusal = None
                    self.children.setdefault(number, child(number))
            case StopChild(stopped):
                for number, known in self.children.items():
                    if known.name == stopped.name:
                        self.children[number] = replace(known, deleting=True)
            case EnsureRun():
                self.tracking = replace(self.tracking, run=RUN, error=None)
            case CheckDigest():
                self.tracking = replace(self.tracking, digest=DIGEST)
            case CloseRun(_, state):
                assert not any(not p.over for p in self.pods), "a run closed under a live pod"
                self.tracking = replace(self.tracking, closed=state)
            case DeleteJob():
                assert finished(self.status)
                self.deleted = True

    def finds_config(self) -> bool:
        """The stored config is the one on record, or is made so by the operator of today."""
        profile = self.status.profile
        assert profile is not None
        own = run_config(
            JOB,
            spec=self.picture_spec(),
            profile=profile.spec,
            output_uri=str(self.status.output_uri),
            release=self.release,
        )
        if self.stored_digest is None:
            if digest_of(own.to_text()) != self.status.config_digest:
                assert self.refusal is None, "held by a config that nobody has stored"
                self.refusal = Refusal(
                    reason=Reason.POD_REFUSED, message="It is gone.", is_config_missing=True
                )
                return False
            self.stored_digest = self.status.config_digest
        assert self.stored_digest == self.status.config_digest, "trains by another config"
        return True

    @rule(release=st.sampled_from(["first", "second", "third"]))
    def the_operator_is_replaced(self, release: str) -> None:
        self.release = release
        self.refusal = None  # it was in memory

    @rule()
    def pods_start(self) -> None:
        for number, known in self.children.items():
            if known.deleting or known.result or number in self.ever_ran:
                continue
            self.ever_ran.add(number)
            self.pods.append(pod(number, started=self.now))

    @rule(ending=st.sampled_from(sorted(ENDINGS)))
    def a_pod_ends(self, ending: str) -> None:
        for position, running in enumerate(self.pods):
            if not running.over:
                over = ended_pod(int(running.attempt), **ENDINGS[ending])
                self.pods[position] = replace(over, started=running.started)

    @rule()
    def a_pod_vanishes(self) -> None:
        self.pods = self.pods[:-1]

    @rule()
    def the_job_controller_looks(self) -> None:
        for number, known in list(self.children.items()):
            mine = [p for p in self.pods if p.attempt == str(number)]
            if number in self.ever_ran and all(p.over for p in mine) and not known.result:
                good = bool(mine) and mine[-1].phase == "Succeeded"
                self.children[number] = replace(known, result="Complete" if good else "Failed")

    @rule()
    def garbage_is_collected(self) -> None:
        for number in [n for n, c in self.children.items() if c.deleting]:
            del self.children[number]
            self.pods = [p for p in self.pods if p.attempt != str(number)]

    @rule()
    def somebody_deletes_the_child(self) -> None:
        """One that was seen: a life that no operator saw leaves nothing to know it by.

        Such a number is used again, after the first life is over.
        """
        for number in self.seen_by_operator.intersection(self.children):
            self.children[number] = replace(self.children[number], deleting=True)

    @rule(suspend=st.booleans())
    def the_user_decides(self, suspend: bool) -> None:
        self.suspend = suspend

    @rule(seconds=st.integers(min_value=1, max_value=1500))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def mlflow_fails(self) -> None:
        self.tracking = replace(self.tracking, error="no answer")

    @invariant()
    def one_attempt_is_alive(self) -> None:
        alive = {p.attempt for p in self.pods if not p.over}
        assert len(alive) <= 1

    @invariant()
    def the_end_is_the_end(self) -> None:
        if self.end is None:
            return
        assert finished(self.status)
        assert self.status.attempt == self.end.attempt
        assert self.status.completion_time == self.end.completion_time

    @invariant()
    def the_status_is_well_formed(self) -> None:
        kinds = [c.type for c in self.status.conditions]
        assert len(kinds) == len(set(kinds))
        assert len(self.status.attempts) <= 10
        assert FineTuneJobStatus.parse(self.status.to_data()) == self.status
        assert self.status.spent.infrastructure <= 2


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=100, stateful_step_count=40)
