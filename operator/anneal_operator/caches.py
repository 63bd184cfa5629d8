"""The four kinds that are watched, and how children are led back to their job."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from anneal_operator.api.names import LABEL_JOB_UID, LABEL_RELEASE
from anneal_operator.kube import Kube, Object, Selector
from anneal_operator.reflector import Reflector
from anneal_operator.resources import FINE_TUNE_JOBS, FINE_TUNE_PROFILES, JOBS, PODS, Resource
from anneal_operator.settings import Settings
from anneal_operator.store import Store
from anneal_operator.workqueue import Key


def uid_of(obj: Object) -> str:
    """Uid of an object; the index of FineTuneJobs."""
    return str(obj["metadata"]["uid"])


def job_uid_of(obj: Object) -> str:
    """Uid of the FineTuneJob that a child belongs to; the index of children and pods."""
    return str((obj["metadata"].get("labels") or {}).get(LABEL_JOB_UID) or "")


def pods_of(pods: Store, *, job_uid: str, namespace: str) -> tuple[Object, ...]:
    """The pods of a job, which are in its namespace.

    The label is written by whoever makes a pod: that of another namespace tells nothing.
    """
    found = pods.indexed(job_uid)
    return tuple(pod for pod in found if pod["metadata"]["namespace"] == namespace)


@dataclass(slots=True)
class Caches:
    """Everything the operator knows of the cluster."""

    jobs: Store = field(default_factory=lambda: Store(index=uid_of))
    profiles: Store = field(default_factory=Store)
    children: Store = field(default_factory=lambda: Store(index=job_uid_of))
    pods: Store = field(default_factory=lambda: Store(index=job_uid_of))

    def key_of_job(self, job_uid: str) -> Key | None:
        """Where the FineTuneJob of that uid is."""
        for job in self.jobs.indexed(job_uid):
            return Key(str(job["metadata"]["namespace"]), str(job["metadata"]["name"]))
        return None

    def alive(self, job_uid: str) -> bool:
        """The job exists, or a pod of it still runs."""
        if self.jobs.indexed(job_uid):
            return True
        phases = ((pod.get("status") or {}).get("phase") for pod in self.pods.indexed(job_uid))
        return any(phase not in ("Succeeded", "Failed") for phase in phases)

    def reflectors(self, kube: Kube, settings: Settings) -> tuple[Reflector, ...]:
        """One reflector for each kind and namespace; profiles are cluster-wide."""
        ours = f"{LABEL_RELEASE}={settings.identity}"
        namespaced: list[tuple[Resource, Store, str]] = [
            (FINE_TUNE_JOBS, self.jobs, ""),
            (JOBS, self.children, ours),
            (PODS, self.pods, ours),
        ]
        kinds = [
            (resource, store, Selector(namespace=namespace, labels=labels))
            for resource, store, labels in namespaced
            for namespace in settings.watch_namespaces or (None,)
        ]
        kinds.append((FINE_TUNE_PROFILES, self.profiles, Selector()))
        return tuple(
            Reflector(
                kube=kube,
                resource=resource,
                selector=selector,
                store=store,
                clock=time.monotonic,
                random=random.random,
            )
            for resource, store, selector in kinds
        )
