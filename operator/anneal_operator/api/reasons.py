"""Condition types and reasons, in one place; docs/reasons.md is generated from this file."""

from dataclasses import dataclass
from enum import StrEnum


class ConditionType(StrEnum):
    """Types of a FineTuneJob's conditions."""

    ACCEPTED = "Accepted"
    QUEUED = "Queued"
    PROVISIONED = "Provisioned"
    RUNNING = "Running"
    CHECKPOINT_AVAILABLE = "CheckpointAvailable"
    REGISTERED = "Registered"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    READY = "Ready"
    """Of a FineTuneProfile."""


class Phase(StrEnum):
    """The printed summary of the conditions; nothing is decided by it."""

    PENDING = "Pending"
    REJECTED = "Rejected"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    RETRYING = "Retrying"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, kw_only=True)
class ReasonDoc:
    """What a reason means, who must act, and what to do."""

    meaning: str
    who: str
    remedy: str


NOBODY, USER, ADMIN = "nobody", "user", "administrator"


class Reason(StrEnum):
    """Reasons the operator itself sets; the trainer's outcome brings further ones."""

    ACCEPTED = "Accepted"
    NOT_IMPLEMENTED = "NotImplemented"
    INVALID_SPEC = "InvalidSpec"
    PROFILE_NOT_FOUND = "ProfileNotFound"
    PROFILE_NOT_READY = "ProfileNotReady"
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    URI_NOT_ALLOWED = "UriNotAllowed"
    REVISION_NOT_PINNED = "RevisionNotPinned"
    LIMIT_EXCEEDED = "LimitExceeded"
    TRACKING_UNREACHABLE = "TrackingUnreachable"
    TRACKING_NOT_KNOWN = "TrackingNotKnown"
    WAITING_FOR_QUOTA = "WaitingForQuota"
    CREATING = "Creating"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePull"
    VOLUME_MOUNT = "VolumeMount"
    POD_REFUSED = "PodRefused"
    CONTAINER_CREATING = "ContainerCreating"
    RUNNING = "Running"
    BACKING_OFF = "BackingOff"
    CHECKPOINT_SAVED = "CheckpointSaved"
    REGISTERED = "Registered"
    SUSPEND_REQUESTED = "SuspendRequested"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    SUCCEEDED = "Succeeded"
    PENDING_DEADLINE = "PendingDeadlineExceeded"
    ACTIVE_DEADLINE = "ActiveDeadlineExceeded"
    STALLED = "Stalled"
    NODE_LOST = "NodeLost"
    PREEMPTED = "Preempted"
    OUT_OF_MEMORY = "OutOfMemory"
    RETRIES_EXHAUSTED = "RetriesExhausted"
    INFRASTRUCTURE_FAILURE = "InfrastructureFailure"
    DIGEST_MISMATCH = "DigestMismatch"
    INPUT_REFUSED = "InputRefused"
    OUTCOME_INCOMPLETE = "OutcomeIncomplete"
    READY = "Ready"


REASON_DOCS: dict[Reason, ReasonDoc] = {
    Reason.ACCEPTED: ReasonDoc(
        meaning="The spec and its profile are in order.", who=NOBODY, remedy="Nothing to do."
    ),
    Reason.NOT_IMPLEMENTED: ReasonDoc(
        meaning="A field of the job, or of its profile, asks for what this release cannot do yet.",
        who=USER,
        remedy="Remove the named field or set it to the value the message names; "
        "in a profile the administrator does.",
    ),
    Reason.INVALID_SPEC: ReasonDoc(
        meaning="The spec breaks a rule the API server could not check.",
        who=USER,
        remedy="Delete the job, correct the named field and apply it again.",
    ),
    Reason.PROFILE_NOT_FOUND: ReasonDoc(
        meaning="compute.profile names no FineTuneProfile.",
        who=USER,
        remedy="Name an existing one (kubectl get finetuneprofiles) or ask the administrator.",
    ),
    Reason.PROFILE_NOT_READY: ReasonDoc(
        meaning="The profile itself is wrong.",
        who=ADMIN,
        remedy="See the profile's Ready condition.",
    ),
    Reason.NAMESPACE_NOT_ALLOWED: ReasonDoc(
        meaning="The profile is not meant for the job's namespace.",
        who=ADMIN,
        remedy="Add the namespace to the profile's allowedNamespaces, or use another profile.",
    ),
    Reason.URI_NOT_ALLOWED: ReasonDoc(
        meaning="A model, dataset or output URI is not on the profile's lists.",
        who=USER,
        remedy="Use an allowed place, or ask the administrator to allow this one.",
    ),
    Reason.REVISION_NOT_PINNED: ReasonDoc(
        meaning="An hf:// revision is not a commit and the profile allows no tags.",
        who=USER,
        remedy="Write the 40-digit commit hash.",
    ),
    Reason.LIMIT_EXCEEDED: ReasonDoc(
        meaning="The job asks for more than the profile's limits.",
        who=USER,
        remedy="Ask for less, or use another profile.",
    ),
    Reason.TRACKING_UNREACHABLE: ReasonDoc(
        meaning="MLflow does not answer, or refuses the operator; the job waits for its run.",
        who=ADMIN,
        remedy="Bring the server or its credentials in order; the job then goes on by itself.",
    ),
    Reason.TRACKING_NOT_KNOWN: ReasonDoc(
        meaning="The profile names an MLflow server that the operator was not told of.",
        who=ADMIN,
        remedy="Add the URI to the chart's tracking values.",
    ),
    Reason.WAITING_FOR_QUOTA: ReasonDoc(
        meaning="Kueue has not admitted the job yet.", who=NOBODY, remedy="Wait, or raise priority."
    ),
    Reason.CREATING: ReasonDoc(
        meaning="The attempt's child object is being made.", who=NOBODY, remedy="Wait."
    ),
    Reason.UNSCHEDULABLE: ReasonDoc(
        meaning="No node has room for the pod.",
        who=ADMIN,
        remedy="Free or add the resources the message names, or ask for less.",
    ),
    Reason.IMAGE_PULL: ReasonDoc(
        meaning="The trainer image cannot be pulled.",
        who=ADMIN,
        remedy="Correct the profile's images.trainer or the registry's credentials.",
    ),
    Reason.VOLUME_MOUNT: ReasonDoc(
        meaning="A Secret, ConfigMap or claim the pod mounts is missing.",
        who=ADMIN,
        remedy="Create the named object in the job's namespace.",
    ),
    Reason.POD_REFUSED: ReasonDoc(
        meaning="The API server refuses the pod, or something stands where its objects belong.",
        who=ADMIN,
        remedy="See the message; change the policy or the profile, or delete what it names.",
    ),
    Reason.CONTAINER_CREATING: ReasonDoc(
        meaning="The node prepares the pod.", who=NOBODY, remedy="Wait."
    ),
    Reason.RUNNING: ReasonDoc(meaning="An attempt runs.", who=NOBODY, remedy="Nothing to do."),
    Reason.BACKING_OFF: ReasonDoc(
        meaning="The last attempt failed; the next one starts after a pause.",
        who=NOBODY,
        remedy="Wait; the message names the cause.",
    ),
    Reason.CHECKPOINT_SAVED: ReasonDoc(
        meaning="A verified checkpoint exists.", who=NOBODY, remedy="Nothing to do."
    ),
    Reason.REGISTERED: ReasonDoc(
        meaning="The model version is in the registry.", who=NOBODY, remedy="Nothing to do."
    ),
    Reason.SUSPEND_REQUESTED: ReasonDoc(
        meaning="The job saves a checkpoint and stops.", who=NOBODY, remedy="Wait."
    ),
    Reason.SUSPENDED: ReasonDoc(
        meaning="The job is stopped and holds no resources.",
        who=USER,
        remedy="Set spec.suspend to false to go on.",
    ),
    Reason.RESUMED: ReasonDoc(
        meaning="The job goes on after a suspension.", who=NOBODY, remedy="Nothing to do."
    ),
    Reason.SUCCEEDED: ReasonDoc(
        meaning="The model is trained, stored and registered.",
        who=NOBODY,
        remedy="Nothing to do.",
    ),
    Reason.PENDING_DEADLINE: ReasonDoc(
        meaning="No pod ran within deadlines.pendingSeconds.",
        who=USER,
        remedy="Raise the deadline or ask for less.",
    ),
    Reason.ACTIVE_DEADLINE: ReasonDoc(
        meaning="The attempts together ran longer than deadlines.activeSeconds.",
        who=USER,
        remedy="Raise the deadline or train fewer steps.",
    ),
    Reason.STALLED: ReasonDoc(
        meaning="The attempt reported no work for deadlines.stallSeconds.",
        who=NOBODY,
        remedy="It is repeated while the budget lasts, from where `resume` says.",
    ),
    Reason.NODE_LOST: ReasonDoc(
        meaning="The pod's node went away.",
        who=NOBODY,
        remedy="The attempt is repeated, from where `resume` says.",
    ),
    Reason.PREEMPTED: ReasonDoc(
        meaning="The attempt was interrupted after saving a checkpoint.",
        who=NOBODY,
        remedy="The attempt is repeated from that checkpoint.",
    ),
    Reason.OUT_OF_MEMORY: ReasonDoc(
        meaning="The kernel killed the trainer for lack of memory.",
        who=USER,
        remedy="Raise compute.memory, or lower training.microBatchSize or sequenceLength.",
    ),
    Reason.RETRIES_EXHAUSTED: ReasonDoc(
        meaning="The retry budget of the failure's class is spent.",
        who=ADMIN,
        remedy="See the attempts' causes in the status.",
    ),
    Reason.INFRASTRUCTURE_FAILURE: ReasonDoc(
        meaning="The attempt failed through no fault of the user.",
        who=NOBODY,
        remedy="It is repeated while the budget lasts.",
    ),
    Reason.DIGEST_MISMATCH: ReasonDoc(
        meaning="The registered version is not the model this job trained.",
        who=ADMIN,
        remedy="Find out who wrote to the registered model; the job's files are untouched.",
    ),
    Reason.INPUT_REFUSED: ReasonDoc(
        meaning="The trainer refused its input, and its own words were lost.",
        who=USER,
        remedy="See the pod's log, or logs/ in the output folder.",
    ),
    Reason.OUTCOME_INCOMPLETE: ReasonDoc(
        meaning="The trainer reported success without a registered version.",
        who=NOBODY,
        remedy="It is repeated while the budget lasts.",
    ),
    Reason.READY: ReasonDoc(
        meaning="Jobs can use the profile.", who=NOBODY, remedy="Nothing to do."
    ),
}
