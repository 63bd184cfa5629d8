"""Which pods count as a job's."""

from anneal_operator.api.names import LABEL_JOB_UID
from anneal_operator.caches import Caches, job_uid_of, pods_of
from anneal_operator.kube import Object
from anneal_operator.store import Store


def pod(namespace: str) -> Object:
    labels = {LABEL_JOB_UID: "uid-1"}
    return {"metadata": {"name": "a-pod", "namespace": namespace, "labels": labels}}


def test_a_pod_of_another_namespace_is_not_the_jobs_whatever_its_labels_say() -> None:
    pods = Store(index=job_uid_of)
    for namespace in ("team-a", "team-b"):
        pods.put(pod(namespace))
    assert pods_of(pods, job_uid="uid-1", namespace="team-a") == (pod("team-a"),)


def test_a_deleted_job_is_alive_until_its_last_pod_is_over() -> None:
    caches = Caches()
    running = {**pod("team-a"), "status": {"phase": "Running"}}
    caches.pods.put(running)
    assert caches.alive("uid-1")
    caches.pods.put({**running, "status": {"phase": "Failed"}})
    assert not caches.alive("uid-1")
    caches.jobs.put({"metadata": {"name": "bot", "namespace": "team-a", "uid": "uid-1"}})
    assert caches.alive("uid-1")
