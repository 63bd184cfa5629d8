"""Every pod of the charts meets the restricted Pod Security Standard, and a bit more."""

from collections.abc import Iterator
from typing import Any

import pytest

# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
VOLUME_KINDS = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


def _pods(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["metadata"]["name"], manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def _violations(pod: dict[str, Any]) -> list[str]:
    found = []
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
        found.append("may run as root")
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("has no seccomp profile")
    found += [f"uses {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    for volume in pod.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUME_KINDS:
            found.append(f"volume {volume['name']} is of kind {kinds}")
    for container in pod["containers"] + pod.get("initContainers", []):
        found += [f"container {container['name']} {text}" for text in _container(container)]
    return found


def _container(container: dict[str, Any]) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False:
        yield "may escalate privileges"
    if security.get("privileged"):
        yield "is privileged"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "can write to its image"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "takes a port of the node"
    resources = container.get("resources", {})
    if "memory" not in resources.get("limits", {}) or "cpu" not in resources.get("requests", {}):
        yield "has no memory limit or no CPU request"


def test_every_pod_is_restricted(case: Any) -> None:
    pods = list(_pods(case.manifests))
    assert pods
    assert {name: _violations(pod) for name, pod in pods} == {name: [] for name, _ in pods}


@pytest.mark.parametrize(
    ("breakage", "want"),
    [
        pytest.param({"hostNetwork": True}, "uses hostNetwork", id="host network"),
        pytest.param({"securityContext": {}}, "may run as root", id="no user"),
        pytest.param(
            {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]},
            "volume x is of kind {'hostPath'}",
            id="host path",
        ),
        pytest.param(
            {"containers": [{"name": "c"}]}, "container c keeps capabilities", id="bare container"
        ),
    ],
)
def test_check_sees_a_breach(breakage: dict[str, Any], want: str, rendered: Any) -> None:
    (_, pod), *_ = _pods(rendered["operator-default"].manifests)
    assert want in _violations({**pod, **breakage})


def test_only_the_operator_holds_a_token(case: Any) -> None:
    tokens = {name for name, pod in _pods(case.manifests) if pod["automountServiceAccountToken"]}
    assert tokens <= {"trial-anneal"}
