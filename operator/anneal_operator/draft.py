"""The status that a decision is building, and what is to be done once it has been written. Pure.

Actions come after the status on purpose: what is about to be done is on record before it is done,
so that an operator killed in between finds its own intent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from anneal_operator.api.reasons import ConditionType
from anneal_operator.api.status import Attempt, FineTuneJobStatus, MlflowStatus, Spent
from anneal_operator.conditions import Truth, display_of, phase_of, with_condition
from anneal_operator.observation import Child, Input
from anneal_pipeline.config.schema import ConfigError

RunState = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, slots=True)
class EnsureRun:
    """Find or make the MLflow run."""


@dataclass(frozen=True, slots=True)
class CreateChild:
    """Create the stored run config and the child of this attempt; both may be there already."""

    attempt: int


@dataclass(frozen=True, slots=True)
class StopChild:
    """Delete the child; its pods get SIGTERM and the grace period."""

    child: Child


@dataclass(frozen=True, slots=True)
class CheckDigest:
    """Read the digest tag of the registered version."""

    model_name: str
    model_version: str


@dataclass(frozen=True, slots=True)
class CloseRun:
    """Close the MLflow run as what it was."""

    run_id: str
    state: RunState


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete the FineTuneJob itself: its time to live has passed."""


Action = EnsureRun | CreateChild | StopChild | CheckDigest | CloseRun | DeleteJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A decision: the status to write if it differs, then what to do, then when to look again."""

    status: FineTuneJobStatus
    actions: tuple[Action, ...] = ()
    again_seconds: float | None = None


@dataclass(slots=True)
class Draft:
    """A status in the making."""

    seen: Input
    status: FineTuneJobStatus
    actions: list[Action] = field(default_factory=list)
    _again_seconds: list[float] = field(default_factory=list)

    def condition(self, kind: ConditionType, truth: Truth, *, reason: str, message: str) -> None:
        """Set one condition."""
        self.change(
            conditions=with_condition(
                self.status.conditions,
                kind,
                truth,
                reason=reason,
                message=message,
                generation=self.seen.job.generation,
                now=self.seen.now,
            )
        )

    def change(self, **fields: Any) -> None:
        """Replace fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def change_attempt(self, **fields: Any) -> None:
        """Replace fields of the current attempt."""
        *earlier, current = self.status.attempts
        self.change(attempts=(*earlier, current.model_copy(update=fields)))

    def change_spent(self, **fields: Any) -> None:
        """Replace fields of the budgets spent."""
        self.change(spent=self.status.spent.model_copy(update=fields))

    def change_mlflow(self, **fields: Any) -> None:
        """Replace fields of the MLflow part."""
        self.change(mlflow=(self.status.mlflow or MlflowStatus()).model_copy(update=fields))

    @property
    def attempt(self) -> Attempt | None:
        """The current attempt, ended or not."""
        return self.status.attempts[-1] if self.status.attempts else None

    @property
    def spent(self) -> Spent:
        return self.status.spent

    def look_again(self, seconds: float) -> None:
        """Come back after `seconds`, or sooner if something else asks for it."""
        self._again_seconds.append(max(1.0, seconds))

    def plan(self) -> Plan:
        """Finish: derive what is derived."""
        spec = self.seen.spec
        model_uri = None if isinstance(spec, ConfigError) else spec.model.uri
        self.change(observed_generation=self.seen.job.generation)
        self.change(
            phase=phase_of(self.status), display=display_of(self.status, model_uri=model_uri)
        )
        return Plan(
            status=self.status,
            actions=tuple(self.actions),
            again_seconds=min(self._again_seconds, default=None),
        )
