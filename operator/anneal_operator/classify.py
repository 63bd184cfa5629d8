"""Why an attempt ended, and whose budget that spends. Pure.

The first of these that speaks counts: the trainer's own outcome (report, then termination log), the
container's exit, the pod's own end, the child Job's condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anneal_operator.api.outcome import ExitCode, Outcome, OutcomeClass
from anneal_operator.api.reasons import Reason
from anneal_operator.observation import Child, Pod

AttemptClass = Literal["Done", "User", "Preemption", "Infrastructure", "Suspension", "Deadline"]

_OF_OUTCOME: dict[OutcomeClass, AttemptClass] = {
    OutcomeClass.DONE: "Done",
    OutcomeClass.USER: "User",
    OutcomeClass.INTERRUPTED: "Preemption",
    OutcomeClass.INFRASTRUCTURE: "Infrastructure",
}

_NODE_GONE = ("DeletionByTaintManager", "DeletionByPodGC")
"""DisruptionTarget reasons that mean the node, not a more important pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The end of an attempt."""

    attempt_class: AttemptClass
    reason: str
    message: str
    exit_code: int | None = None


def classify(*, outcome: Outcome | None, pod: Pod | None, child: Child | None) -> Verdict:
    """Decide from what is known of an attempt whose pods are gone or over."""
    ended = pod.termination if pod else None
    said = outcome or (ended.outcome if ended else None)
    code = ended.exit_code if ended else None
    if said is not None:
        return _by_outcome(said, exit_code=code)
    if pod is not None and ended is not None:
        return _by_exit(pod)
    if pod is not None:
        return _by_pod(pod)
    if child is not None and child.result:
        return Verdict(
            attempt_class="Infrastructure",
            reason=Reason.INFRASTRUCTURE_FAILURE,
            message=f"The child Job {child.name} ended as {child.result} ({child.reason}: "
            f"{child.message}) and left no pod and no outcome.",
        )
    return Verdict(
        attempt_class="Infrastructure",
        reason=Reason.INFRASTRUCTURE_FAILURE,
        message="The attempt's child Job was deleted by somebody else and left no outcome.",
    )


def _by_outcome(said: Outcome, *, exit_code: int | None) -> Verdict:
    if said.outcome_class is OutcomeClass.DONE and not (
        said.artefact_digest and said.model_version
    ):
        return Verdict(
            attempt_class="Infrastructure",
            reason=Reason.OUTCOME_INCOMPLETE,
            message="The trainer reported success but named no registered version and artefact "
            "digest.",
            exit_code=exit_code,
        )
    return Verdict(
        attempt_class=_OF_OUTCOME[said.outcome_class],
        reason=said.reason,
        message=said.message,
        exit_code=exit_code,
    )


def _by_exit(pod: Pod) -> Verdict:
    ended = pod.termination
    if ended is None:
        raise AssertionError("called for a container that has ended")
    code = ended.exit_code
    if ended.reason == "OOMKilled":
        return Verdict(
            attempt_class="User",
            reason=Reason.OUT_OF_MEMORY,
            message="The kernel killed the trainer because the pod used more memory than its "
            "limit; raise spec.compute.memory, or lower training.microBatchSize or "
            "training.sequenceLength.",
            exit_code=code,
        )
    if code == ExitCode.USER:
        return Verdict(
            attempt_class="User",
            reason=Reason.INPUT_REFUSED,
            message="The trainer refused its input (exit code 65) and its outcome was lost; see "
            f"`kubectl logs {pod.name}`.",
            exit_code=code,
        )
    if code == ExitCode.INTERRUPTED:
        return Verdict(
            attempt_class="Preemption",
            reason=Reason.PREEMPTED,
            message=f"The trainer was interrupted after saving a checkpoint{_because(pod)}.",
            exit_code=code,
        )
    if pod.disruption or pod.status_reason:
        return _by_pod(pod)
    return Verdict(
        attempt_class="Infrastructure",
        reason=Reason.INFRASTRUCTURE_FAILURE,
        message=f"The trainer ended with exit code {code} and left no outcome; see "
        f"`kubectl logs {pod.name}`.",
        exit_code=code,
    )


def _by_pod(pod: Pod) -> Verdict:
    code = pod.termination.exit_code if pod.termination else None
    where = f"node {pod.node}" if pod.node else "its node"
    if pod.disruption in _NODE_GONE or pod.status_reason == "NodeLost":
        return Verdict(
            attempt_class="Infrastructure",
            reason=Reason.NODE_LOST,
            message=f"Pod {pod.name} was lost together with {where} ({pod.disruption}).",
            exit_code=code,
        )
    if pod.disruption:
        return Verdict(
            attempt_class="Preemption",
            reason=Reason.PREEMPTED,
            message=f"Pod {pod.name} had to leave {where} ({pod.disruption}) and left no outcome.",
            exit_code=code,
        )
    why = ": ".join(filter(None, (pod.status_reason, pod.status_message)))
    return Verdict(
        attempt_class="Infrastructure",
        reason=Reason.INFRASTRUCTURE_FAILURE,
        message=f"Pod {pod.name} on {where} ended without an outcome"
        f"{f' ({why})' if why else ', deleted or lost'}.",
        exit_code=code,
    )


def _because(pod: Pod) -> str:
    return f" ({pod.disruption} on node {pod.node})" if pod.disruption else ""
