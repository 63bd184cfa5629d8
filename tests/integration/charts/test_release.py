"""Helm against a real API server: what a release brings, keeps and takes away.

Needs an API server without Anneal's definitions, so it starts one of its own. No pod runs here.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
CHARTS = REPOSITORY / "charts"
PROFILE = {
    "name": "default",
    "spec": {"images": {"trainer": "trainer:1"}, "tracking": {"uri": "http://mlflow.dev.svc:5000"}},
}
KINDS = [
    "finetuneprofiles", "clusterroles", "clusterrolebindings", "roles", "rolebindings", "secrets",
    "configmaps", "deployments", "services", "serviceaccounts", "poddisruptionbudgets", "leases",
    "networkpolicies",
]  # fmt: skip
CRDS = {"finetunejobs.anneal.dev", "finetuneprofiles.anneal.dev"}


class Cluster:
    """An API server and the two programs that talk to it."""

    def __init__(self, *, kubeconfig: Path, programs: Path) -> None:
        self._kubeconfig = kubeconfig
        self._programs = programs

    def helm(self, *arguments: str) -> None:
        self._run("helm", *arguments)

    def kubectl(self, *arguments: str) -> str:
        return self._run("kubectl", *arguments)

    def names(self, kind: str) -> set[str]:
        """Names of all objects of a kind that have to do with Anneal."""
        items = json.loads(self.kubectl("get", kind, "--all-namespaces", "-o", "json"))["items"]
        names = {f"{i['metadata'].get('namespace', '')}/{i['metadata']['name']}" for i in items}
        return {name for name in names if "anneal" in name}

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._programs / program, "--kubeconfig", str(self._kubeconfig), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, kubectl_program: Path) -> Iterator[Cluster]:
    with subprocess.Popen(
        [sys.executable, "tests/cluster/cluster.py", "api-server", "--dir",
         str(tmp_path_factory.mktemp("api-server"))],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            ready = next((line for line in process.stdout if line.startswith("ready ")), "")
            assert ready, "the API server did not start; see its messages above"
            kubeconfig = Path(ready.split()[1])
            yield Cluster(kubeconfig=kubeconfig, programs=kubectl_program.parent)
        finally:
            process.terminate()


@pytest.fixture
def empty(server: Cluster) -> Cluster:
    """The API server without Anneal's definitions, as a first install finds it."""
    server.kubectl("delete", "crd", "--ignore-not-found", *sorted(CRDS))
    return server


def _install(cluster: Cluster, *, verb: str, namespace: str, values: dict[str, Any]) -> None:
    cluster.helm(
        verb, "anneal", str(CHARTS / "anneal"), "--namespace", namespace,
        *(["--create-namespace"] if verb == "install" else []),
        *(f"--set-json={key}={json.dumps(value)}" for key, value in values.items()),
    )  # fmt: skip


def _left(cluster: Cluster) -> dict[str, set[str]]:
    return {kind: left for kind in KINDS if (left := cluster.names(kind))}


def _uid(cluster: Cluster) -> str:
    return cluster.kubectl("get", "finetuneprofile", "default", "-o", "jsonpath={.metadata.uid}")


def _certificate(cluster: Cluster) -> str:
    return cluster.kubectl(
        "--namespace=first", "get", "secret", "anneal-progress-tls", "-o", "jsonpath={.data}"
    )


def test_first_install_brings_its_profile_and_uninstall_leaves_only_definitions(
    empty: Cluster,
) -> None:
    _install(empty, verb="install", namespace="first", values={"profiles": [PROFILE]})
    assert empty.names("crd") == {f"/{name}" for name in CRDS}
    assert _uid(empty)
    empty.helm("uninstall", "anneal", "--namespace", "first")
    assert _left(empty) == {}
    assert empty.names("crd") == {f"/{name}" for name in CRDS}


def test_upgrade_keeps_profile_and_certificate(empty: Cluster) -> None:
    _install(empty, verb="install", namespace="first", values={"profiles": [PROFILE]})
    before = _uid(empty), _certificate(empty)
    _install(
        empty, verb="upgrade", namespace="first", values={"profiles": [PROFILE], "replicas": 1}
    )
    assert (_uid(empty), _certificate(empty)) == before
    _install(empty, verb="upgrade", namespace="first", values={"profiles": []})
    assert empty.kubectl("get", "finetuneprofiles", "-o", "name") == ""
    empty.helm("uninstall", "anneal", "--namespace", "first")
    assert _left(empty) == {}


def test_two_namespaced_releases_of_one_name_live_side_by_side(empty: Cluster) -> None:
    for team in ("team-a", "team-b"):
        empty.kubectl("create", "namespace", team)
    _install(empty, verb="install", namespace="first", values={"watch.namespaces": ["team-a"]})
    _install(
        empty,
        verb="install",
        namespace="second",
        values={"watch.namespaces": ["team-b"], "crds.install": False},
    )
    assert {"/first:anneal", "/second:anneal"} <= empty.names("clusterrolebindings")
    assert empty.names("roles") == {
        "team-a/first:anneal", "first/anneal-leader",
        "team-b/second:anneal", "second/anneal-leader",
    }  # fmt: skip
    empty.helm("uninstall", "anneal", "--namespace", "first")
    assert {name for name in empty.names("roles") if "first" in name} == set()
    assert "team-b/second:anneal" in empty.names("roles")
    empty.helm("uninstall", "anneal", "--namespace", "second")
    assert _left(empty) == {}


@pytest.mark.parametrize("namespace", ["first", "default", "kube-system"])
def test_the_operator_may_not_touch_a_secret(namespace: str, empty: Cluster) -> None:
    _install(empty, verb="install", namespace="first", values={})
    allowed = empty.kubectl(
        "auth", "can-i", "--list", "--namespace", namespace, "--no-headers",
        "--as=system:serviceaccount:first:anneal",
    )  # fmt: skip
    empty.helm("uninstall", "anneal", "--namespace", "first")
    resources = {line.split()[0] for line in allowed.splitlines()}
    assert "finetunejobs.anneal.dev" in resources
    assert not {"*.*", "secrets"} & resources


def test_development_services_keep_their_key(server: Cluster) -> None:
    server.kubectl("create", "namespace", "jobs")
    chart = str(CHARTS / "anneal-dev-services")
    arguments = ("--namespace", "dev", "--set", "jobNamespaces={jobs}")
    server.helm("install", "dev", chart, "--create-namespace", *arguments)
    read = ("get", "secret", "anneal-storage", "-o", "jsonpath={.data.credentials}")
    first = server.kubectl("--namespace=dev", *read)
    server.helm("upgrade", "dev", chart, *arguments, "--set", "s3.buckets={other}")
    assert server.kubectl("--namespace=dev", *read) == first
    assert server.kubectl("--namespace=jobs", *read) == first
    server.helm("uninstall", "dev", "--namespace", "dev")
    assert server.names("secrets") == set()
