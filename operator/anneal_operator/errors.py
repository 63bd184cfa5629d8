"""What can go wrong in the operator, as types, so that callers decide by class and never by text.

OperatorError
+-- SettingsError            the environment of the pod is wrong; the process exits
+-- OverlappingInstall       another release serves the same namespaces; the process exits
+-- LeadershipLost           the lease could not be renewed; the process exits
+-- TrackingError            MLflow did not answer, failed, or gave no sense; it may answer later
|   +-- TrackingDenied       MLflow answers and refuses us (401, 403, other 4xx): its administrator
|   +-- TrackingRejected     MLflow answers and refuses the user's own words: never asked again
+-- ChildRefused             an attempt's child must not or cannot be made as things are
|   +-- EarlierPodAlive      a pod of an earlier attempt still runs
|   +-- ConfigMissing        the config on record is not stored, and would be written otherwise now
+-- KubeError                the API server answered with an error, or did not answer
    +-- Unreachable          no answer: connection refused or reset, timeout, broken TLS
    +-- Throttled            429, or 503 with Retry-After
    +-- ServerFailure        any other 5xx
    +-- NotFound             404
    +-- Conflict             409, the resource version is stale
    |   +-- AlreadyExists    409 with reason AlreadyExists
    +-- Gone                 410, the resource version or continue token has expired
    +-- Forbidden            401 and 403
    +-- Invalid              400, 413 and 422
"""

from __future__ import annotations

from typing import Any


class OperatorError(Exception):
    """Root of everything this package raises on purpose."""


class SettingsError(OperatorError):
    """The environment of the operator's pod is wrong."""


class OverlappingInstall(OperatorError):
    """Another live release already serves one of our namespaces."""


class LeadershipLost(OperatorError):
    """The lease could not be renewed in time; nothing may be written any more."""


class TrackingError(OperatorError):
    """MLflow did not answer in time, failed, or answered what makes no sense."""


class TrackingDenied(TrackingError):
    """MLflow refuses the operator itself: credentials, rights or address are wrong."""


class TrackingRejected(TrackingError):
    """MLflow refuses what the user wrote into spec.tracking; the same words are refused again."""


class ChildRefused(OperatorError):
    """The child of an attempt must not or cannot be made as things are.

    The text is a sentence for the job's status.
    """


class EarlierPodAlive(ChildRefused):
    """A pod of an earlier attempt still runs; the child can be made once it has ended."""


class ConfigMissing(ChildRefused):
    """No ConfigMap holds the config that is on record, and this operator would write another."""


class KubeError(OperatorError):
    """An answer of the API server that is not a success."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class Unreachable(KubeError):
    """No answer came."""


class Throttled(KubeError):
    """The server asks us to come back later."""


class ServerFailure(KubeError):
    """The server failed; the same request may succeed later."""


class NotFound(KubeError):
    """There is no such object, or no such kind."""


class Conflict(KubeError):
    """The object has changed since it was read."""


class AlreadyExists(Conflict):
    """An object of that name is there already."""


class Gone(KubeError):
    """The resource version is too old to go on from."""


class Forbidden(KubeError):
    """The operator's service account lacks this right."""


class Invalid(KubeError):
    """The server refuses the content of the request."""


TRANSIENT = (Unreachable, Throttled, ServerFailure)

_BY_STATUS: dict[int, type[KubeError]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: Invalid,
    422: Invalid,
    429: Throttled,
}


def from_status(
    status: int, body: dict[str, Any], *, retry_after_seconds: float | None = None, request: str
) -> KubeError:
    """Turn a `metav1.Status` answer into the matching error.

    A `Forbidden` that stems from a terminating namespace or a quota keeps the server's message.
    """
    reason = str(body.get("reason") or "")
    if status == 409 and reason == "AlreadyExists":
        kind: type[KubeError] = AlreadyExists
    elif status == 503 and retry_after_seconds is not None:
        kind = Throttled
    elif status in _BY_STATUS:
        kind = _BY_STATUS[status]
    else:
        kind = ServerFailure if status >= 500 else KubeError
    text = str(body.get("message") or "no message")
    return kind(
        f"{request} was answered {status} {reason or 'without a reason'}: {text}",
        status=status,
        reason=reason,
        retry_after_seconds=retry_after_seconds,
    )
