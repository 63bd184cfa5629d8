"""The operator as a process of its own against a real API server and a real MLflow server.

There is no kubelet and no controller manager: `Cluster` plays their part, by writing what they
would write. Each test has a namespace of its own, with the restricted Pod Security Standard
enforced, and an operator in namespaced mode that serves nothing else.
"""

import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.operator.certificate import write_certificate
from tests.integration.operator.cluster import Cluster, apply_profile
from tests.integration.operator.mlflow_server import Mlflow, serve_mlflow
from tests.integration.operator.operator_process import OperatorProcess, Operators
from tests.integration.operator.trainer import Trainer

from anneal_operator.kube import Kube, Object, connect
from anneal_operator.resources import Resource

NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def tls_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The progress server's certificate: tls.crt, tls.key, ca.crt."""
    folder = tmp_path_factory.mktemp("progress-tls")
    write_certificate(folder)
    return folder


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_mlflow(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


@pytest.fixture
async def kube(anneal_api: Path) -> AsyncIterator[Kube]:
    connection = await connect(user_agent="anneal-tests", kubeconfig=anneal_api)
    yield connection
    await connection.close()


@pytest.fixture
async def cluster(kube: Kube, anneal_api: Path, mlflow_uri: str) -> Cluster:
    """A namespace of the test's own, with a profile that is made for it."""
    namespace = f"team-{os.getpid()}-{next(_numbers)}"
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": namespace, "labels": enforce},
    }
    await kube.create(NAMESPACES, body)
    service_account = Resource("", "v1", "serviceaccounts", "ServiceAccount")
    await kube.apply(
        service_account,
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": namespace},
        },
        namespace=namespace,
        field_manager="tests",
    )
    await apply_profile(kube, mlflow_uri=mlflow_uri)
    return Cluster(kube=kube, namespace=namespace, kubeconfig=anneal_api)


@pytest.fixture
def operators(
    cluster: Cluster, anneal_api: Path, tls_dir: Path, mlflow_uri: str, tmp_path: Path
) -> Iterator[Operators]:
    factory = Operators(
        kubeconfig=anneal_api,
        tls_dir=tls_dir,
        mlflow_uri=mlflow_uri,
        namespace=cluster.namespace,
        folder=tmp_path,
    )
    yield factory
    for operator in factory.made:
        operator.kill()
        sys.stdout.write(operator.lines())


@pytest.fixture
def trainer(cluster: Cluster, tls_dir: Path) -> Callable[..., Awaitable[Trainer]]:
    """Makes the trainer of a running pod, with a token as the kubelet projects it."""

    async def make(pod: Object, *, operator: OperatorProcess, audience: str = "") -> Trainer:
        labels = pod["metadata"]["labels"]
        tokens = Resource("", "v1", "serviceaccounts/default/token", "TokenRequest")
        bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"]}
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience or f"anneal.dev/job/{labels['anneal.dev/job-uid']}"],
                "expirationSeconds": 3600,
                "boundObjectRef": {**bound, "uid": pod["metadata"]["uid"]},
            },
        }
        made = await cluster.kube.create(tokens, request, namespace=cluster.namespace)
        path = f"namespaces/{cluster.namespace}/finetunejobs/{labels['anneal.dev/job']}/status"
        return Trainer(
            cluster=cluster,
            pod=pod,
            token=made["status"]["token"],
            url=f"{operator.progress_url}/apis/anneal.dev/v1alpha1/{path}",
            ca=tls_dir / "ca.crt",
            attempt=int(labels["anneal.dev/attempt"]),
        )

    return make


@pytest.fixture
def mlflow(mlflow_uri: str) -> Mlflow:
    return Mlflow(mlflow_uri)
