"""The operator as a process of its own against a real API server and a real MLflow server.

There is no kubelet and no controller manager: `Cluster` plays their part, by writing what they
would write. Each test has a namespace of its own, with the restricted Pod Security Standard
enforced, and an operator in namespaced mode that serves nothing else.
"""

import asyncio
import itertools
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow.tracking import MlflowClient

from anneal_operator.kube import Kube, Object, Selector, connect
from anneal_operator.resources import (
    FINE_TUNE_JOBS,
    FINE_TUNE_PROFILES,
    JOBS,
    PODS,
    Resource,
)

NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
DEADLINE_SECONDS = 120.0
"""Generous: the machine may be busy with other things."""
POLL_SECONDS = 0.1
_numbers = itertools.count(1)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def eventually(look: Callable[[], Awaitable[Any]], *, what: str) -> Any:
    """Look again and again until there is something, and say what was awaited if it never comes."""
    async with asyncio.timeout(DEADLINE_SECONDS) as limit:
        while True:
            found = await look()
            if found:
                return found
            limit_at = limit.when()
            if limit_at is not None and asyncio.get_running_loop().time() > limit_at - 1:
                raise AssertionError(f"waited in vain for {what}")
            await asyncio.sleep(POLL_SECONDS)


@pytest.fixture(scope="session")
def tls_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for loopback: tls.crt, tls.key, ca.crt."""
    folder = tmp_path_factory.mktemp("progress-tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(tz=UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "tls.crt").write_bytes(pem)
    (folder / "ca.crt").write_bytes(pem)
    (folder / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on SQLite."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "mlflow"),
        "server",
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as server,
    ):
        uri = f"http://127.0.0.1:{port}"
        try:
            _until_healthy(uri, server=server, log=folder / "log")
            yield uri
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def _until_healthy(uri: str, *, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1500):
        assert server.poll() is None, log.read_text()
        try:
            with urlopen(f"{uri}/health", timeout=5):  # noqa: S310 - our own loopback server
                return
        except (URLError, ConnectionError, TimeoutError):
            server_is_slow = 0.2
            try:
                server.wait(server_is_slow)
            except subprocess.TimeoutExpired:
                continue
    raise AssertionError(f"MLflow did not become healthy: {log.read_text()}")


@dataclass
class Cluster:
    """The API server, and the parts of kubelet and controllers that a test plays."""

    kube: Kube
    namespace: str
    kubeconfig: Path

    async def job(self, name: str = "support-bot") -> Object:
        return await self.kube.get(FINE_TUNE_JOBS, name, namespace=self.namespace)

    async def status(self, name: str = "support-bot") -> Object:
        return (await self.job(name)).get("status") or {}

    async def condition(self, kind: str, name: str = "support-bot") -> Object:
        conditions = (await self.status(name)).get("conditions") or ()
        return next((c for c in conditions if c["type"] == kind), {})

    async def until_condition(
        self, kind: str, truth: str, *, reason: str | None = None, name: str = "support-bot"
    ) -> Object:
        async def look() -> Object | None:
            found = await self.condition(kind, name)
            fits = found.get("status") == truth and reason in (None, found.get("reason"))
            return found if fits else None

        return dict(await eventually(look, what=f"{kind}={truth} {reason or ''}"))

    async def apply_job(
        self, spec: Object | None = None, *, name: str = "support-bot", **fields: Any
    ) -> Object:
        body = {
            "apiVersion": "anneal.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {**(spec or smallest_spec(self.namespace)), **fields},
        }
        return await self.kube.apply(
            FINE_TUNE_JOBS, body, namespace=self.namespace, field_manager="user"
        )

    async def children(self) -> tuple[Object, ...]:
        return await self.kube.list_all(JOBS, selector=Selector(namespace=self.namespace))

    async def until_child(self, attempt: int) -> Object:
        async def look() -> Object | None:
            return next(
                (
                    c
                    for c in await self.children()
                    if c["metadata"]["labels"]["anneal.dev/attempt"] == str(attempt)
                ),
                None,
            )

        return dict(await eventually(look, what=f"the child of attempt {attempt}"))

    async def start_pod(self, child: Object) -> Object:
        """What the Job controller, the scheduler and the kubelet do. Pod Security is enforced."""
        template = child["spec"]["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{child['metadata']['name']}-{next(_numbers):05d}",
                "namespace": self.namespace,
                "labels": template["metadata"]["labels"],
            },
            "spec": {**template["spec"], "nodeName": "node-1"},
        }
        made = await self.kube.create(PODS, pod, namespace=self.namespace)
        state = {"running": {"startedAt": _now()}}
        return await self.pod_status(made, phase="Running", state=state)

    async def pod_status(self, pod: Object, *, phase: str, state: Object, **more: Any) -> Object:
        container = {
            "name": "trainer",
            "image": "trainer",
            "imageID": "",
            "ready": phase == "Running",
            "restartCount": 0,
            "state": state,
        }
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod["metadata"]["name"], "namespace": self.namespace},
            "status": {"phase": phase, "containerStatuses": [container], **more},
        }
        return await self.kube.apply(
            PODS, body, namespace=self.namespace, field_manager="kubelet", subresource="status"
        )

    async def end_pod(self, pod: Object, *, code: int, message: str = "", reason: str = "") -> None:
        """The container ends; the kubelet keeps its exit code and termination message."""
        ended = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": message,
            "startedAt": _now(),
            "finishedAt": _now(),
        }
        phase = "Succeeded" if code == 0 else "Failed"
        await self.pod_status(pod, phase=phase, state={"terminated": ended})

    async def end_child(self, child: Object, *, result: str) -> None:
        """The Job controller's last word."""
        before = "SuccessCriteriaMet" if result == "Complete" else "FailureTarget"
        conditions = [
            {"type": kind, "status": "True", "reason": "Test", "lastTransitionTime": _now()}
            for kind in (before, result)
        ]
        status: Object = {
            "conditions": conditions,
            "startTime": _now(),
            "succeeded" if result == "Complete" else "failed": 1,
        }
        if result == "Complete":
            status["completionTime"] = _now()
        body = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": child["metadata"]["name"], "namespace": self.namespace},
            "status": status,
        }
        await self.kube.apply(
            JOBS,
            body,
            namespace=self.namespace,
            field_manager="job-controller",
            subresource="status",
        )

    async def collect(self, child: Object, *, pods: tuple[Object, ...] = ()) -> None:
        """What kubelet and garbage collector do once a child is deleted in the foreground."""
        name = child["metadata"]["name"]

        async def deleted() -> bool:
            found = await self.kube.get(JOBS, name, namespace=self.namespace)
            return "deletionTimestamp" in found["metadata"]

        await eventually(deleted, what=f"the deletion of {name}")
        for pod in pods:
            kubectl(
                self.kubeconfig,
                "delete",
                "pod",
                pod["metadata"]["name"],
                "--grace-period=0",
                "--force",
                "-n",
                self.namespace,
            )
        patch = '{"metadata":{"finalizers":null}}'
        kubectl(
            self.kubeconfig, "patch", "job", name, "-n", self.namespace, "--type=merge", "-p", patch
        )


def kubectl(kubeconfig: Path, *arguments: str, check: bool = True) -> str:
    """Run kubectl as a user would."""
    cache = Path(os.environ.get("ANNEAL_CACHE") or Path.home() / ".cache" / "anneal")
    command = [str(cache / "bin" / "kubectl"), "--kubeconfig", str(kubeconfig), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout + done.stderr


def smallest_spec(namespace: str) -> Object:
    """The smallest job of the documentation."""
    return {
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "0" * 40},
        "dataset": {"uri": f"s3://team-data/{namespace}/support.jsonl"},
    }


def _now() -> str:
    return datetime.now(tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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


async def apply_profile(kube: Kube, *, mlflow_uri: str, name: str = "default") -> None:
    """The administrator's profile."""
    body = {
        "apiVersion": "anneal.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": name},
        "spec": {
            "images": {"trainer": "localhost/anneal-trainer:test"},
            "storage": {
                "endpoint": "http://s3.test:7070",
                "credentialsSecret": "s3",
                "outputURI": "s3://models/out",
                "allowedReadURIs": ["s3://team-data/{namespace}"],
            },
            "models": {"allowedURIs": ["hf://HuggingFaceTB"]},
            "tracking": {"uri": mlflow_uri},
            "resources": {"gpusPerWorker": 0, "cpus": "1", "memory": "2Gi"},
        },
    }
    await kube.apply(FINE_TUNE_PROFILES, body, field_manager="admin")


@dataclass
class OperatorProcess:
    """One replica of the operator."""

    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> "OperatorProcess":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "anneal_operator"],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )
        return self

    def kill(self) -> None:
        """SIGKILL: no chance to tidy up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=30)

    @property
    def progress_url(self) -> str:
        return self.environment["ANNEAL_PROGRESS_URL"]

    @property
    def health_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['ANNEAL_HEALTH_PORT']}"

    def lines(self) -> str:
        return self.log.read_text()


@dataclass
class Operators:
    """Makes replicas, and ends them all after the test."""

    kubeconfig: Path
    tls_dir: Path
    mlflow_uri: str
    namespace: str
    folder: Path
    made: list[OperatorProcess] = field(default_factory=list)

    def __call__(self, **settings: str) -> OperatorProcess:
        number = next(_numbers)
        port = free_port()
        environment = {
            "ANNEAL_RELEASE": "anneal",
            "ANNEAL_POD_NAMESPACE": self.namespace,
            "ANNEAL_POD_NAME": f"operator-{number}",
            "ANNEAL_POD_IP": "127.0.0.1",
            "ANNEAL_WATCH_NAMESPACES": self.namespace,
            "ANNEAL_PROGRESS_URL": f"https://localhost:{port}",
            "ANNEAL_PROGRESS_HOST": "127.0.0.1",
            "ANNEAL_PROGRESS_PORT": str(port),
            "ANNEAL_PROGRESS_TLS_DIR": str(self.tls_dir),
            "ANNEAL_HEALTH_HOST": "127.0.0.1",
            "ANNEAL_HEALTH_PORT": str(free_port()),
            "ANNEAL_TRACKING_SERVERS": f'[{{"uri": "{self.mlflow_uri}"}}]',
            "ANNEAL_KUBECONFIG": str(self.kubeconfig),
            "ANNEAL_LOG_LEVEL": "DEBUG",
            **settings,
        }
        operator = OperatorProcess(environment, log=self.folder / f"operator-{number}.log")
        self.made.append(operator)
        return operator.start()


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


DIGEST = "sha256:" + "a" * 64


@dataclass
class Trainer:
    """A training pod that reports: its real token, bound to the pod and to the job's audience."""

    cluster: Cluster
    pod: Object
    token: str
    url: str
    ca: Path
    attempt: int

    async def post(self, *, token: str | None = None, **anneal: Any) -> tuple[int, str]:
        """Send one report; the keyword arguments are the `anneal` object."""
        body = {
            "trainerStatus": {
                "progressPercentage": anneal.pop("percent", 0),
                "estimatedRemainingSeconds": anneal.pop("eta", 360),
                "lastUpdatedTime": _now(),
            },
            "anneal": {"attempt": self.attempt, **anneal},
        }
        headers = {"Authorization": f"Bearer {token or self.token}"}
        context = ssl.create_default_context(cafile=self.ca)
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(self.url, json=body, ssl=context) as answer,
        ):
            return answer.status, await answer.text()


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


def outcome(kind: str = "Done", **fields: Any) -> Object:
    """An outcome as the trainer sends it."""
    done = {"artefactDigest": DIGEST, "modelVersion": "support-bot/1"} if kind == "Done" else {}
    reason = {"Done": "Done", "User": "DatasetNotFound", "Interrupted": "Preempted"}.get(
        kind, "StorageUnreachable"
    )
    told = {"class": kind, "reason": reason, "message": f"The attempt ended as {kind}."}
    return {**told, **done, **fields}


class Mlflow:
    """What a test asks of the MLflow server, through its own client."""

    def __init__(self, uri: str) -> None:
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def runs(self, job_uid: str) -> list[Any]:
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        where = f"tags.`anneal.job.uid` = '{job_uid}'"
        return list(self.client.search_runs(experiments, filter_string=where))

    def register(self, name: str, *, run_id: str, digest: str = DIGEST) -> str:
        """A version as the trainer registers it; returns NAME/VERSION."""
        self.client.create_registered_model(name)
        version = self.client.create_model_version(
            name, source=f"runs:/{run_id}", run_id=run_id, tags={"anneal.artefact.digest": digest}
        )
        return f"{name}/{version.version}"


@pytest.fixture
def mlflow(mlflow_uri: str) -> Mlflow:
    return Mlflow(mlflow_uri)
