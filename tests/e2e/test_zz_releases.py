"""Releases of the chart on a living cluster; last, because the operator goes away here."""

import json
import time

from harness import installation
from harness.cluster import Cluster, Object, wait_for
from harness.installation import JOBS, RELEASE, SECOND_JOBS, SECOND_SYSTEM, SYSTEM
from harness.jobs import manifest, submit

LABEL_JOB = "anneal.dev/job"
KINDS = (
    "deployments,pods,services,serviceaccounts,roles,rolebindings,leases,configmaps,secrets,"
    "poddisruptionbudgets,networkpolicies"
)


def _of_release(cluster: Cluster, namespace: str) -> list[str]:
    """Everything that bears the mark of the release of a namespace, wherever it lies."""
    found: list[Object] = [
        # What a job owns goes with the job, and that is its user's.
        *(i for i in cluster.items(KINDS) if LABEL_JOB not in i["metadata"].get("labels", {})),
        *cluster.items("clusterroles,clusterrolebindings"),
    ]
    return [
        f"{item['kind']} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}"
        for item in found
        if f"{RELEASE}.{namespace}" in json.dumps(item["metadata"])
        or f"{namespace}:{RELEASE}" in json.dumps(item["metadata"])
        or (item["metadata"].get("namespace") == namespace and "anneal" in item["metadata"]["name"])
    ]


def test_two_namespaced_releases_serve_their_own_jobs(cluster: Cluster, installed: object) -> None:
    installation.install_operator(cluster, namespace=SECOND_SYSTEM, watched=SECOND_JOBS, replicas=1)
    # Refused for what it asks, which is the quickest answer an operator can give.
    spec = {"dataset": {"uri": "s3://somebody-elses-bucket/rows.jsonl"}}
    ours = submit(cluster, manifest("first-release", **spec))
    theirs = submit(cluster, manifest("second-release", namespace=SECOND_JOBS, **spec))
    for job in (ours, theirs):
        job.wait_for_phase("Rejected", "Failed", seconds=60)
    owners = {
        namespace: cluster.get("lease", "anneal-owner", namespace=namespace)["spec"][
            "holderIdentity"
        ]
        for namespace in (JOBS, SECOND_JOBS)
    }
    assert owners == {
        JOBS: f"{RELEASE}.{SYSTEM}",
        SECOND_JOBS: f"{RELEASE}.{SECOND_SYSTEM}",
    }


def test_uninstall_leaves_the_other_release_alone(cluster: Cluster, installed: object) -> None:
    installation.install_operator(cluster, namespace=SECOND_SYSTEM, watched=SECOND_JOBS, replicas=1)
    cluster.helm("uninstall", RELEASE, f"--namespace={SECOND_SYSTEM}", "--wait")
    _wait_until_gone(cluster, SECOND_SYSTEM)
    assert _of_release(cluster, SYSTEM)
    cluster.kubectl(
        "rollout", "status", "deployment/anneal", f"--namespace={SYSTEM}", "--timeout=30s"
    )


def test_uninstall_leaves_only_definitions_and_jobs(cluster: Cluster, installed: object) -> None:
    job = submit(cluster, manifest("left-behind", suspend=True))
    wait_for("its status", lambda: job.status() or None, seconds=60)
    cluster.helm("uninstall", RELEASE, f"--namespace={SYSTEM}", "--wait")
    _wait_until_gone(cluster, SYSTEM)
    assert job.read()["spec"]["suspend"] is True
    assert cluster.kubectl("get", "crd", "finetunejobs.anneal.dev", "--output=name")


def _wait_until_gone(cluster: Cluster, namespace: str) -> None:
    """Garbage collection follows the deletion of an owner within seconds."""
    end = time.monotonic() + 60
    while left := _of_release(cluster, namespace):
        assert time.monotonic() < end, left
        time.sleep(1)
