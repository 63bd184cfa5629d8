"""FineTuneJobs of the tests: how they are written, applied and watched."""

import json
from dataclasses import dataclass
from typing import Any

from harness.cluster import Cluster, Object, wait_for
from harness.installation import JOBS, PROFILE
from harness.stores import DATASET_URI, MODEL_URI

END_SECONDS = 1800.0
"""Longest wait for a job's end: two cores run two jobs at a time, and a busy machine fewer."""
FINISHED = ("Succeeded", "Failed", "Rejected")


def manifest(name: str, *, namespace: str = JOBS, **sections: Any) -> Object:
    """A FineTuneJob that learns the tiny data set by heart in about 20 seconds of training."""
    spec: Object = {
        "model": {"uri": MODEL_URI},
        "dataset": {"uri": DATASET_URI, "layout": "messages"},
        "tuning": {"method": "lora", "lora": {"rank": 16, "alpha": 32}},
        "training": {
            "maxSteps": 200,
            "batchSize": 8,
            "learningRate": 0.005,
            "sequenceLength": 128,
            "gradientCheckpointing": False,
        },
        "evaluation": {"numGenerations": 1},
        "compute": {"profile": PROFILE},
        "retry": {"backoffSeconds": 1},
    }
    for section, values in sections.items():
        spec[section] = {**spec.get(section, {}), **values} if isinstance(values, dict) else values
    return {
        "apiVersion": "anneal.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


@dataclass(frozen=True, kw_only=True)
class Job:
    """One applied FineTuneJob."""

    cluster: Cluster
    name: str
    namespace: str = JOBS

    def read(self) -> Object:
        return self.cluster.get("finetunejob", self.name, namespace=self.namespace)

    def status(self) -> Object:
        status: Object = self.read().get("status", {})
        return status

    def pods(self) -> list[Object]:
        return self.cluster.items(
            "pods", namespace=self.namespace, labels=f"anneal.dev/job={self.name}"
        )

    def children(self) -> list[str]:
        jobs = self.cluster.items(
            "jobs", namespace=self.namespace, labels=f"anneal.dev/job={self.name}"
        )
        return sorted(job["metadata"]["name"] for job in jobs)

    def patch_spec(self, **fields: Any) -> None:
        self.cluster.kubectl(
            "patch", "finetunejob", self.name, f"--namespace={self.namespace}",
            "--type=merge", f"--patch={json.dumps({'spec': fields})}",
        )  # fmt: skip

    def wait_for_phase(self, *phases: str, seconds: float = END_SECONDS) -> Object:
        """Return the status once the job is in one of the phases; stop at once at any end."""

        def probe() -> Object | None:
            status = self.status()
            phase = status.get("phase")
            if phase in FINISHED and phase not in phases:
                raise AssertionError(f"{self.name} is {phase}: {explain(status)}")
            return status if phase in phases else None

        return wait_for(f"{self.name} in {' or '.join(phases)}", probe, seconds=seconds)

    def wait_for_checkpoint(self, *, attempt: int = 1) -> Object:
        """Return the status once the attempt trains and a checkpoint exists."""

        def probe() -> Object | None:
            status = self.status()
            if status.get("phase") in FINISHED:
                raise AssertionError(f"{self.name} ended too early: {explain(status)}")
            ready = status.get("attempt") == attempt and status.get("checkpoint")
            return status if ready else None

        return wait_for(f"a checkpoint of {self.name}", probe, seconds=END_SECONDS)


def submit(cluster: Cluster, job: Object) -> Job:
    cluster.kubectl("apply", "--filename=-", stdin=json.dumps(job))
    metadata = job["metadata"]
    return Job(cluster=cluster, name=metadata["name"], namespace=metadata["namespace"])


def condition(status: Object, kind: str) -> Object:
    """Return one condition, empty where it is not set."""
    return next((c for c in status.get("conditions", []) if c["type"] == kind), {})


def explain(status: Object) -> str:
    """The last words of a status, for a failing test."""
    lines = [
        f"{c['type']}={c['status']} {c['reason']}: {c.get('message', '')}"
        for c in status.get("conditions", [])
    ]
    return "\n".join([*lines, json.dumps(status.get("attempts", []), indent=1)])
