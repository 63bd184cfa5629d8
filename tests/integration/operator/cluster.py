"""The API server, and the parts of kubelet and controllers that a test plays."""

import itertools
import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.integration.operator.eventually import eventually

from anneal_operator.kube import Kube, Object, Selector
from anneal_operator.resources import FINE_TUNE_JOBS, FINE_TUNE_PROFILES, JOBS, PODS

_numbers = itertools.count(1)


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
        state = {"running": {"startedAt": now()}}
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
            "startedAt": now(),
            "finishedAt": now(),
        }
        phase = "Succeeded" if code == 0 else "Failed"
        await self.pod_status(pod, phase=phase, state={"terminated": ended})

    async def end_child(self, child: Object, *, result: str) -> None:
        """The Job controller's last word."""
        before = "SuccessCriteriaMet" if result == "Complete" else "FailureTarget"
        conditions = [
            {"type": kind, "status": "True", "reason": "Test", "lastTransitionTime": now()}
            for kind in (before, result)
        ]
        status: Object = {
            "conditions": conditions,
            "startTime": now(),
            "succeeded" if result == "Complete" else "failed": 1,
        }
        if result == "Complete":
            status["completionTime"] = now()
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


def now() -> str:
    """The present moment as the API server writes it."""
    return datetime.now(tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
