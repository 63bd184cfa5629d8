"""Errors of the jobs side.

    anneal_pipeline.errors.UserError   the user's input is wrong: never retried, exit code 65
    JobsError
      UsageError                       a command needs another option: exit code 2
      InfrastructureError              ours or the surroundings' failure: retried, exit code 203
        StorageUnreachableError        S3, the hub or a volume does not answer as it should
        StaleAttemptError              a newer attempt of this job is running: this one must stop

A `UserError` raised here carries one of the reasons below. Messages are sentences for the person
who wrote the job: what, where, what was found, and the next step.
"""

from __future__ import annotations

BUCKET_NOT_FOUND = "BucketNotFound"
STORAGE_ACCESS_DENIED = "StorageAccessDenied"
STORAGE_UNREACHABLE = "StorageUnreachable"
URI_INVALID = "UriInvalid"
TRACKING_FAILED = "TrackingFailed"
STALE_ATTEMPT = "StaleAttempt"
TRAINER_CRASHED = "TrainerCrashed"
RANK_FAILED = "RankFailed"
RAY_NOT_STARTED = "RayNotStarted"
RUN_CONFIG_INVALID = "RunConfigInvalid"
CHECKPOINT_GIVEN_UP = "CheckpointGivenUp"
INTERRUPTED = "Interrupted"

USER_REASONS = (BUCKET_NOT_FOUND, STORAGE_ACCESS_DENIED, URI_INVALID)
"""Every reason a `UserError` raised by this package carries beside the pipeline's own."""

INFRASTRUCTURE_REASONS = (
    STORAGE_UNREACHABLE,
    TRACKING_FAILED,
    STALE_ATTEMPT,
    TRAINER_CRASHED,
    RANK_FAILED,
    RAY_NOT_STARTED,
    RUN_CONFIG_INVALID,
    CHECKPOINT_GIVEN_UP,
    INTERRUPTED,
)
"""Every other reason an outcome carries."""


class JobsError(Exception):
    """The root of everything this package raises on purpose."""


class UsageError(JobsError):
    """The command cannot answer with the options it was given; nothing is wrong with the job."""


class InfrastructureError(JobsError):
    """Not the user's mistake: another attempt may end otherwise."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class StorageUnreachableError(InfrastructureError, OSError):
    """A place of files does not answer; an OSError too, as the pipeline's `BlobFolder` promises."""

    def __init__(self, message: str) -> None:
        super().__init__(STORAGE_UNREACHABLE, message)

    def __str__(self) -> str:
        return self.message


class StaleAttemptError(InfrastructureError):
    def __init__(self) -> None:
        super().__init__(
            STALE_ATTEMPT, "a newer attempt of this job is running, so this one stopped writing"
        )
