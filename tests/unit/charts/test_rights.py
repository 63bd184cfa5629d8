"""What the operator may do: little, no wildcard, and nothing with Secrets."""

from pathlib import Path
from typing import Any

import pytest

OPERATOR_CASES = ["operator-default", "operator-namespaced", "operator-everything"]
FORBIDDEN = {
    "secrets", "serviceaccounts", "pods/exec", "pods/attach", "pods/log", "pods/portforward",
    "roles", "rolebindings", "clusterrolebindings", "*",
}  # fmt: skip
SMALL_CLUSTER_ROLE = {
    ("authentication.k8s.io", "tokenreviews"): {"create"},
    ("anneal.dev", "finetuneprofiles"): {"list", "watch"},
    ("rbac.authorization.k8s.io", "clusterroles"): {"get"},
}


def _rules(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    roles = [m for m in manifests if m["kind"] in ("Role", "ClusterRole")]
    return [rule for role in roles for rule in role["rules"]]


def _operator_cluster_role(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (binding,) = [m for m in manifests if m["kind"] == "ClusterRoleBinding"]
    (role,) = [
        m
        for m in manifests
        if m["kind"] == "ClusterRole" and m["metadata"]["name"] == binding["roleRef"]["name"]
    ]
    return role


def test_no_right_reaches_secrets_or_other_identities(case: Any) -> None:
    for rule in _rules(case.manifests):
        assert FORBIDDEN.isdisjoint(rule["resources"]), rule
        assert "*" not in rule["verbs"], rule
        assert "*" not in rule["apiGroups"], rule


def _granted(rules: list[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    granted: dict[tuple[str, str], set[str]] = {}
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                granted.setdefault((group, resource), set()).update(rule["verbs"])
    return granted


def _documented(charts: Path, *places: str) -> dict[tuple[str, str], set[str]]:
    """The table of docs/admin.md, of the named places."""
    text = (charts.parent / "docs" / "admin.md").read_text()
    found: dict[tuple[str, str], set[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in places:
            _, group, resource, verbs, _ = cells
            key = ("" if group == "core" else group, resource)
            found.setdefault(key, set()).update(verbs.split(", "))
    return found


def test_the_administrators_guide_lists_every_right_and_no_other(
    rendered: Any, charts: Path
) -> None:
    whole = rendered["operator-default"].manifests
    assert _granted(_operator_cluster_role(whole)["rules"]) == _documented(
        charts, "cluster", "namespaces"
    )
    roles = [m for m in rendered["operator-namespaced"].manifests if m["kind"] == "Role"]
    for place, namespace in (("namespaces", "team-a"), ("release", "anneal-system")):
        (role,) = [m for m in roles if m["metadata"]["namespace"] == namespace]
        assert _granted(role["rules"]) == _documented(charts, place)


def test_namespaced_mode_keeps_one_small_cluster_role(rendered: Any) -> None:
    manifests = rendered["operator-namespaced"].manifests
    cluster_roles = [m for m in manifests if m["kind"] == "ClusterRole"]
    assert [role["metadata"]["name"] for role in cluster_roles] == ["anneal-system:trial-anneal"]
    assert _granted(cluster_roles[0]["rules"]) == SMALL_CLUSTER_ROLE


def test_namespaced_mode_has_a_role_in_each_watched_namespace(rendered: Any) -> None:
    manifests = rendered["operator-namespaced"].manifests
    for kind in ("Role", "RoleBinding"):
        namespaces = {m["metadata"]["namespace"] for m in manifests if m["kind"] == kind}
        assert namespaces == {"team-a", "team-b", "anneal-system"}


def test_both_modes_grant_the_same_in_a_namespace(rendered: Any) -> None:
    whole = _operator_cluster_role(rendered["operator-default"].manifests)["rules"]
    roles = [
        m
        for m in rendered["operator-namespaced"].manifests
        if m["kind"] == "Role" and m["metadata"]["namespace"] == "team-a"
    ]
    assert all(rule in whole for rule in roles[0]["rules"])


def test_cluster_role_may_read_itself_only(rendered: Any) -> None:
    for name in OPERATOR_CASES:
        role = _operator_cluster_role(rendered[name].manifests)
        (rule,) = [rule for rule in role["rules"] if "clusterroles" in rule["resources"]]
        assert rule["resourceNames"] == [role["metadata"]["name"]]
        assert rule["verbs"] == ["get"]


def test_leases_are_written_by_name_only(rendered: Any) -> None:
    for name in OPERATOR_CASES:
        for rule in _rules(rendered[name].manifests):
            if "leases" in rule["resources"] and {"get", "update"} & set(rule["verbs"]):
                assert rule["resourceNames"] in (["anneal-owner"], ["trial-anneal-leader"])


def test_users_roles_never_reach_the_status(rendered: Any) -> None:
    roles = [
        m
        for m in rendered["operator-default"].manifests
        if any("aggregate-to" in label for label in m["metadata"].get("labels", {}))
    ]
    assert len(roles) == 3
    resources = {resource for rule in _rules(roles) for resource in rule["resources"]}
    assert resources == {"finetunejobs", "finetuneprofiles"}


@pytest.mark.parametrize("name", OPERATOR_CASES)
def test_every_binding_names_a_role_and_the_service_account(name: str, rendered: Any) -> None:
    manifests = rendered[name].manifests
    roles = {(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests}
    bindings = [m for m in manifests if m["kind"].endswith("Binding")]
    assert bindings
    for binding in bindings:
        ref, where = binding["roleRef"], binding["metadata"].get("namespace")
        assert (ref["kind"], where, ref["name"]) in roles
        assert [subject["name"] for subject in binding["subjects"]] == ["trial-anneal"]
