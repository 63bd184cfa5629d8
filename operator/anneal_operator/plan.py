"""The decision about one job: a chain of checks from what is seen to what is to be done. Pure.

Nothing here reads a clock, a cache or the network; everything comes in by `Input`. The order of the
checks is the contract: a finished job is never looked at again, a stop waits for the pods, a child
is created only after the intent has been written, and success only after the registry agrees.
"""

from __future__ import annotations

from anneal_operator import attempts
from anneal_operator.admission import output_uri, refusal
from anneal_operator.api.reasons import ConditionType, Reason
from anneal_operator.api.status import ProfileSnapshot
from anneal_operator.between import between, settle
from anneal_operator.case import Case
from anneal_operator.closing import after_the_end
from anneal_operator.conditions import finished
from anneal_operator.draft import Draft, Plan
from anneal_operator.observation import Input
from anneal_operator.under_way import alive, is_over
from anneal_pipeline.config.schema import ConfigError


def plan(seen: Input) -> Plan:
    """Decide what to do about one job."""
    draft = Draft(seen=seen, status=seen.status)
    if seen.job.deleting:
        return Plan(status=seen.status)
    if finished(seen.status):
        after_the_end(draft)
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
    _decide(Case(draft, spec=seen.spec, profile=snapshot.spec))
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


def _decide(case: Case) -> None:
    """An accepted, unfinished job."""
    draft = case.draft
    attempts.absorb(draft)
    attempt = draft.attempt
    if attempt is not None and attempt.ended is None:
        if not is_over(case, attempt):
            alive(case, attempt)
            return
        attempts.conclude(draft, profile=case.profile, spec=case.spec)
        case.not_running(message="The attempt is over.")
        if not settle(case):
            return
    between(case)
