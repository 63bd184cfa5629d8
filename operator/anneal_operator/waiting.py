"""Why an attempt does not run yet, in one sentence with the next step. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from anneal_operator.api.reasons import Reason
from anneal_operator.observation import Pod, Refusal

_PULL_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
)
_CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What the attempt waits for."""

    reason: Reason
    message: str


def waiting_for(pod: Pod | None, *, hint: str, image: str, refusal: Refusal | None = None) -> Wait:
    """Say what a child without a running pod waits for.

    `hint` is the newest Warning event about the child (no pod) or about the pod; `refusal` is why
    there is no child.
    """
    if pod is None:
        if refusal is not None:
            return Wait(reason=refusal.reason, message=refusal.message)
        if hint:
            return Wait(
                reason=Reason.POD_REFUSED,
                message=f"The API server refuses the attempt: {hint}; the administrator must "
                "change the policy, the quota or the profile.",
            )
        return Wait(reason=Reason.CREATING, message="Waiting for the attempt's pod to be made.")
    if pod.unschedulable:
        return Wait(
            reason=Reason.UNSCHEDULABLE,
            message=f"No node takes pod {pod.name}: {pod.unschedulable}; free or add what is "
            "missing, or ask for less in spec.compute.",
        )
    if pod.waiting_reason in _PULL_REASONS:
        detail = pod.waiting_message or pod.waiting_reason
        return Wait(
            reason=Reason.IMAGE_PULL,
            message=f"Image {image} of pod {pod.name} cannot be pulled ({pod.waiting_reason}): "
            f"{detail}; correct the profile's images.trainer, or the registry.",
        )
    if pod.waiting_reason in _CONFIG_REASONS:
        return Wait(
            reason=Reason.VOLUME_MOUNT,
            message=f"Pod {pod.name} cannot start ({pod.waiting_reason}): "
            f"{pod.waiting_message or hint}; create the named object in the job's namespace.",
        )
    if hint and pod.node:
        return Wait(
            reason=Reason.VOLUME_MOUNT,
            message=f"Pod {pod.name} on node {pod.node} cannot start: {hint}; create the missing "
            "object in the job's namespace.",
        )
    return Wait(
        reason=Reason.CONTAINER_CREATING,
        message=f"Node {pod.node or 'yet to be chosen'} prepares pod {pod.name}.",
    )
