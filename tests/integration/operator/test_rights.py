"""The operator with exactly the rights that the chart grants: nothing it needs is missing."""

import json
import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tests.integration.operator.cluster import Cluster, kubectl
from tests.integration.operator.eventually import eventually
from tests.integration.operator.mlflow_server import Mlflow
from tests.integration.operator.operator_process import Operators
from tests.integration.operator.trainer import Trainer, outcome

from anneal_operator.kube import Object
from anneal_operator.resources import CLUSTER_ROLES, CONFIG_MAPS, LEASES, Resource

REPOSITORY = Path(__file__).resolve().parents[3]
RIGHTS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


def rights_of_the_chart(cluster: Cluster, *, uri: str, folder: Path) -> str:
    """Apply the chart's service account and rights in namespaced mode; the ClusterRole's name."""
    cache = Path(os.environ.get("ANNEAL_CACHE") or Path.home() / ".cache" / "anneal")
    command = [
        str(cache / "bin" / "helm"),
        *("template", "anneal", str(REPOSITORY / "charts" / "anneal"), "-n", cluster.namespace),
        *("--set", f"watch.namespaces={{{cluster.namespace}}}"),
        *("--set", f"tracking.servers[0].uri={uri}"),
    ]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    manifests = [m for m in YAML(typ="safe").load_all(rendered) if m and m["kind"] in RIGHTS]
    file = folder / "rights.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))
    kubectl(cluster.kubeconfig, "apply", "-f", str(file))
    bound = next(m for m in manifests if m["kind"] == "ClusterRoleBinding")
    return str(bound["roleRef"]["name"])


async def kubeconfig_of_the_operator(cluster: Cluster, *, folder: Path) -> Path:
    """A kubeconfig with a token of the chart's service account."""
    tokens = Resource("", "v1", "serviceaccounts/anneal/token", "TokenRequest")
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    made = await cluster.kube.create(tokens, request, namespace=cluster.namespace)
    config = YAML(typ="safe").load(cluster.kubeconfig)
    config["users"][0]["user"] = {"token": made["status"]["token"]}
    file = folder / "operator-kubeconfig"
    file.write_text(json.dumps(config))
    return file


async def owners(cluster: Cluster, resource: Resource, name: str) -> list[Object]:
    found = await cluster.kube.get(resource, name, namespace=cluster.namespace)
    return list(found["metadata"].get("ownerReferences") or ())


@pytest.fixture
async def role(cluster: Cluster, mlflow_uri: str, tmp_path: Path) -> str:
    return rights_of_the_chart(cluster, uri=mlflow_uri, folder=tmp_path)


async def test_a_whole_job_with_the_rights_of_the_chart(
    cluster: Cluster,
    operators: Operators,
    trainer: Callable[..., Awaitable[Trainer]],
    mlflow: Mlflow,
    role: str,
    tmp_path: Path,
) -> None:
    config = await kubeconfig_of_the_operator(cluster, folder=tmp_path)
    operator = operators(ANNEAL_KUBECONFIG=str(config), ANNEAL_OWNER_CLUSTER_ROLE=role)
    job = await cluster.apply_job(ttlSecondsAfterFinished=0)
    child = await cluster.until_child(1)
    pod = await cluster.start_pod(child)
    await cluster.until_condition("Running", "True")
    owner_uid = (await cluster.kube.get(CLUSTER_ROLES, role))["metadata"]["uid"]
    ca = f"anneal-progress-ca-anneal-{cluster.namespace}"
    for resource, name in ((LEASES, "anneal-leader"), (LEASES, "anneal-owner"), (CONFIG_MAPS, ca)):
        (owner,) = await owners(cluster, resource, name)
        assert owner["uid"] == owner_uid

    (run,) = mlflow.runs(job["metadata"]["uid"])
    version = mlflow.register(f"rights-{cluster.namespace}", run_id=run.info.run_id)
    reporter = await trainer(pod, operator=operator)
    code, _ = await reporter.post(outcome=outcome(modelVersion=version))
    assert code == 200
    await cluster.end_pod(pod, code=0)
    await cluster.end_child(child, result="Complete")

    async def deleted() -> bool:
        listed = kubectl(cluster.kubeconfig, "get", "ftj", "-n", cluster.namespace, "-o",
                         "jsonpath={.items[*].metadata.deletionTimestamp}{.items}")  # fmt: skip
        return listed.startswith("20") or listed.strip() == "[]"

    await eventually(deleted, what="the deletion of the finished job")
    assert operator.stop() == 0
    assert "answered 403" not in operator.lines()
