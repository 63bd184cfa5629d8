"""What belongs to a job in the cluster: seen through caches, checked live where it counts.

Caches may lag behind. Before a missing child is believed to be gone, and right before a new one is
made, the API server itself is asked: two attempts must never be alive at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anneal_operator.api import names
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.reasons import Reason
from anneal_operator.api.run_config import RunConfig
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.caches import pods_of
from anneal_operator.errors import (
    AlreadyExists,
    ChildRefused,
    ConfigMissing,
    EarlierPodAlive,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
)
from anneal_operator.kube import Kube, Object, Selector
from anneal_operator.logs import log_event
from anneal_operator.manifests import (
    ca_config_map,
    child_job,
    run_config_map,
)
from anneal_operator.observation import Child, Input, Job, Pod, Refusal, read_child, read_pod
from anneal_operator.resources import CONFIG_MAPS, CORE_EVENTS, JOBS, PODS, Resource
from anneal_operator.settings import Settings
from anneal_operator.store import Store
from anneal_operator.stored_config import digest_of, run_config
from anneal_operator.workqueue import Key

logger = logging.getLogger(__name__)

_HINTS = ("FailedCreate", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "Failed")


@dataclass(slots=True)
class Children:
    """Child Jobs, pods and ConfigMaps of FineTuneJobs."""

    kube: Kube
    settings: Settings
    jobs: Store
    pods: Store
    owner_references: Callable[[], tuple[Object, ...]]
    _refusals: dict[str, Refusal] = field(default_factory=dict)
    """Job uid to why the child could not be made; the next decision tells the user."""
    _ca_applied: dict[str, str] = field(default_factory=dict)
    """Namespace to the CA that was last written there."""

    async def observe(self, seen: Input, *, unfinished: bool) -> Input:
        """Add the current attempt's child and the job's pods to what is seen."""
        job, status = seen.job, seen.status
        pods = tuple(
            sorted(
                (read_pod(p, attempt_label=names.LABEL_ATTEMPT) for p in self._pods(job)),
                key=lambda pod: (pod.over, pod.name),
                reverse=True,
            )
        )
        attempt = status.attempts[-1] if status.attempts else None
        child = None
        if attempt is not None:
            found = self.jobs.get(Key(job.namespace, attempt.child))
            if found is None and unfinished and attempt.ended is None:
                found = await self._live_child(job, attempt.child)
                pods = pods if found is not None else await self._live_pods(job)
            child = _owned(found, job)
        refusal = self._refusals.get(job.uid) if child is None else None
        seen = replace(seen, pods=pods, child=child, refusal=refusal)
        if child is not None and attempt is not None and not child.result:
            seen = replace(seen, hint=await self._hint(child, seen.pod_of(attempt.number), job))
        return seen

    def _pods(self, job: Job) -> tuple[Object, ...]:
        return pods_of(self.pods, job_uid=job.uid, namespace=job.namespace)

    async def _live_child(self, job: Job, name: str) -> Object | None:
        try:
            return await self.kube.get(JOBS, name, namespace=job.namespace)
        except NotFound:
            return None

    async def _live_pods(self, job: Job) -> tuple[Pod, ...]:
        selector = Selector(namespace=job.namespace, labels=f"{names.LABEL_JOB_UID}={job.uid}")
        found = await self.kube.list_all(PODS, selector=selector)
        return tuple(read_pod(pod, attempt_label=names.LABEL_ATTEMPT) for pod in found)

    async def _hint(self, child: Child, pod: Pod | None, job: Job) -> str:
        """The newest Warning about a child without a pod, or a pod without a running container."""
        if pod is not None and (pod.started or pod.over or not pod.node):
            return ""
        uid = pod.uid if pod is not None else child.uid
        selector = Selector(
            namespace=job.namespace, fields=f"involvedObject.uid={uid},type=Warning"
        )
        try:
            found = await self.kube.list_all(CORE_EVENTS, selector=selector)
        except KubeError as error:
            log_event(logger, "events_unreadable", level=logging.WARNING, error=str(error))
            return ""
        told = [event for event in found if event.get("reason") in _HINTS]
        if not told:
            return ""
        return str(max(told, key=_event_time).get("message") or "").strip()

    async def create(
        self,
        job: Job,
        *,
        spec: FineTuneJobSpec,
        profile: FineTuneProfileSpec,
        attempt: int,
        run_id: str,
        output_uri: str,
        config_digest: str,
    ) -> None:
        """Make sure that CA, stored run config and child are there; each may be already.

        What stands in the way is kept for the next decision, and raised: an answer of the API
        server (a quota, a policy), or `ChildRefused`.
        """
        release = self.settings.identity
        config = run_config(job, spec=spec, profile=profile, output_uri=output_uri, release=release)
        child = child_job(
            job,
            spec=spec,
            profile=profile,
            attempt=attempt,
            run_id=run_id,
            progress_url=self.settings.progress_url,
            release=release,
        )
        try:
            await self.apply_ca(job.namespace)
            await self._store_config(job, config=config, digest=config_digest)
            await self._no_other_alive(job, attempt=attempt)
            made = await self._create_owned(JOBS, child, job=job)
        except (ChildRefused, Forbidden, Invalid) as error:
            self._refusals[job.uid] = _refusal(error)
            raise
        self._refusals.pop(job.uid, None)
        key = Key(job.namespace, str(made["metadata"]["name"]))
        if self.jobs.get(key) is None:
            # Until the watch tells of it; never over something that the watch told later.
            self.jobs.put(made)

    async def _store_config(self, job: Job, *, config: RunConfig, digest: str) -> None:
        """Write job.json, or find the one of that digest: never train by anything else.

        An operator that would write it otherwise than the one that the job began under leaves it
        as it is.
        """
        name = names.run_config_name(job.name, job.uid)
        if digest_of(config.to_text()) == digest:
            body = run_config_map(job, config=config, release=self.settings.identity)
            stored = await self._create_owned(CONFIG_MAPS, body, job=job)
            remedy = "Delete it, so that the job can go on."
        else:
            stored = await self._earlier_config(job, name=name)
            remedy = "Put it back, or apply the job again under another name."
        if stored.get("immutable") is True and _digest_of_config(stored) == digest:
            return
        raise ChildRefused(
            f"ConfigMap {name} does not hold the config that this job began with; somebody else "
            f"made or replaced it. {remedy}"
        )

    async def _earlier_config(self, job: Job, *, name: str) -> Object:
        """The stored config of a job that began under another version of the operator."""
        try:
            found = await self.kube.get(CONFIG_MAPS, name, namespace=job.namespace)
        except NotFound:
            raise ConfigMissing(
                f"ConfigMap {name} with the config that this job began with is gone, and this "
                "version of the operator would write another one. Apply the job again under "
                "another name."
            ) from None
        return _require_owned(found, job, kind=CONFIG_MAPS.kind)

    async def _no_other_alive(self, job: Job, *, attempt: int) -> None:
        for pod in await self._live_pods(job):
            if not pod.over and pod.attempt != str(attempt):
                raise EarlierPodAlive(
                    f"Attempt {attempt} waits for pod {pod.name} of attempt {pod.attempt or '?'} "
                    "to end."
                )

    async def stop(self, child: Child, *, namespace: str) -> None:
        """Delete a child; its pods get SIGTERM and their grace period."""
        try:
            await self.kube.delete(JOBS, child.name, namespace=namespace, uid=child.uid)
        except NotFound:
            return

    async def _create_owned(self, resource: Resource, body: Object, *, job: Job) -> Object:
        try:
            return await self.kube.create(resource, body, namespace=job.namespace)
        except AlreadyExists:
            name = str(body["metadata"]["name"])
            found = await self.kube.get(resource, name, namespace=job.namespace)
            return _require_owned(found, job, kind=resource.kind)

    def forget(self, job_uid: str) -> None:
        """The job is gone."""
        self._refusals.pop(job_uid, None)

    async def apply_ca(self, namespace: str) -> None:
        """Bring the progress server's CA into the namespace, again after it was rotated."""
        ca = read_ca(self.settings.progress_tls_dir)
        if self._ca_applied.get(namespace) == ca:
            return
        body = ca_config_map(
            namespace=namespace,
            release=self.settings.identity,
            ca=ca,
            owner_references=self.owner_references(),
        )
        await self.kube.apply(
            CONFIG_MAPS, body, namespace=namespace, field_manager=names.FIELD_MANAGER
        )
        self._ca_applied[namespace] = ca


def read_ca(folder: Path) -> str:
    """The CA that training pods trust; the certificate itself where it is self-signed."""
    ca = folder / "ca.crt"
    return (ca if ca.is_file() else folder / "tls.crt").read_text()


def _event_time(event: dict[str, Any]) -> str:
    series = event.get("series") or {}
    times = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"))
    return next((str(time) for time in times if time), "")


def _is_owned(obj: Object, job: Job) -> bool:
    owners = obj["metadata"].get("ownerReferences") or ()
    return any(owner.get("uid") == job.uid and owner.get("controller") for owner in owners)


def _require_owned(obj: Object, job: Job, *, kind: str) -> Object:
    if _is_owned(obj, job):
        return obj
    raise ChildRefused(
        f"{kind} {obj['metadata']['name']} exists and does not belong to this job ({job.uid}). "
        "Delete it, so that the job can go on."
    ) from None


def _digest_of_config(config_map: Object) -> str | None:
    text = (config_map.get("data") or {}).get(names.RUN_CONFIG_KEY)
    return None if text is None else digest_of(text)


def _refusal(error: ChildRefused | KubeError) -> Refusal:
    if isinstance(error, EarlierPodAlive):
        return Refusal(reason=Reason.CREATING, message=str(error))
    if isinstance(error, ChildRefused):
        return Refusal(
            reason=Reason.POD_REFUSED,
            message=str(error),
            is_config_missing=isinstance(error, ConfigMissing),
        )
    return Refusal(
        reason=Reason.POD_REFUSED,
        message=f"The API server refuses the attempt: {error}; the administrator must change the "
        "policy, the quota or the profile.",
    )


def _owned(obj: Object | None, job: Job) -> Child | None:
    return read_child(obj) if obj is not None and _is_owned(obj, job) else None
