"""One job from what is there to what should be: gather, decide, write, act.

All I/O of a decision is here; the decision itself is `plan`. The status is written before anything
is done, with the resource version that the decision was made from, so that an intent is on record
before its effect and a decision made from an old picture is refused by the API server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from anneal_operator.api import names
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.status import FineTuneJobStatus
from anneal_operator.children import Children
from anneal_operator.clock import parse_time
from anneal_operator.conditions import finished
from anneal_operator.draft import (
    Action,
    CheckDigest,
    CloseRun,
    CreateChild,
    DeleteJob,
    EnsureRun,
    Plan,
    StopChild,
)
from anneal_operator.errors import AlreadyExists, Forbidden, KubeError, NotFound
from anneal_operator.events import Note, event, notes
from anneal_operator.kube import Kube
from anneal_operator.logs import log_event
from anneal_operator.metrics import Metrics
from anneal_operator.observation import Input, Job, Profile
from anneal_operator.plan import plan
from anneal_operator.progress_board import ProgressBoard
from anneal_operator.resources import EVENTS, FINE_TUNE_JOBS
from anneal_operator.settings import Settings
from anneal_operator.store import Store
from anneal_operator.tracking import Tracker, run_tags
from anneal_operator.workqueue import Key
from anneal_pipeline.config.schema import ConfigError

Object = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Reconciler:
    """Brings FineTuneJobs into line."""

    kube: Kube
    settings: Settings
    jobs: Store
    profiles: Store
    children: Children
    board: ProgressBoard
    tracker: Tracker
    metrics: Metrics
    now: Callable[[], datetime]
    serving_since: datetime | None = None
    _written: dict[str, tuple[str, Object]] = field(default_factory=dict)
    """Job uid to the version a status was written over, and what came of it."""

    async def reconcile(self, key: Key) -> float | None:
        """Bring one job into line; return after how many seconds to look again."""
        obj = self.jobs.get(key)
        if obj is None:
            return None
        seen = await self._observe(self._newest(obj))
        decided = plan(seen)
        if decided.status != seen.status:
            await self._write(seen, decided)
        self._keep_outcome(decided.status, seen.job)
        for told in self.board.take_events(seen.job.uid):
            await self._tell(Note(reason=told.name, message=told.message, warning=False), seen.job)
        if seen.child is not None and not finished(decided.status):
            await self.children.apply_ca(key.namespace)
        for action in decided.actions:
            await self._act(action, seen=seen, status=decided.status)
        return decided.again_seconds

    def _newest(self, obj: Object) -> Object:
        """Our own last write, while the watch still shows the version it was made over."""
        uid = str(obj["metadata"]["uid"])
        over, written = self._written.get(uid, ("", obj))
        if over == obj["metadata"]["resourceVersion"]:
            return written
        self._written.pop(uid, None)
        return obj

    def forget(self, job_uid: str) -> None:
        """The job is gone; nothing of it is kept in memory."""
        self._written.pop(job_uid, None)
        self.board.forget(job_uid)
        self.children.forget(job_uid)
        self.tracker.forget(job_uid)

    async def _observe(self, obj: Object) -> Input:
        job = read_job(obj)
        status = FineTuneJobStatus.parse(obj.get("status") or {})
        spec = read_spec(obj)
        seen = Input(
            now=self.now(),
            job=job,
            spec=spec,
            status=status,
            profile=None if isinstance(spec, ConfigError) else self._profile(spec),
            known_tracking_uris=tuple(s.uri for s in self.settings.tracking_servers),
            release=self.settings.identity,
            report=self.board.released(job.uid, attempt=status.attempt),
            tracking=self.tracker.known(job.uid),
            serving_since=self.serving_since,
        )
        return await self.children.observe(seen, unfinished=not finished(status))

    def _profile(self, spec: FineTuneJobSpec) -> Profile | None:
        obj = self.profiles.get(Key("", spec.compute.profile))
        return None if obj is None else read_profile(obj)

    async def _write(self, seen: Input, decided: Plan) -> None:
        job = seen.job
        body = {
            "apiVersion": FINE_TUNE_JOBS.api_version,
            "kind": FINE_TUNE_JOBS.kind,
            "metadata": {
                "name": job.name,
                "namespace": job.namespace,
                "uid": job.uid,
                "resourceVersion": job.resource_version,
            },
            "status": decided.status.to_data(),
        }
        written = await self.kube.apply(
            FINE_TUNE_JOBS,
            body,
            namespace=job.namespace,
            field_manager=names.FIELD_MANAGER,
            subresource="status",
        )
        self._written[job.uid] = (job.resource_version, written)
        self._count(seen.status, decided.status)
        for note in notes(seen.status, decided.status):
            log_event(
                logger,
                "job_changed",
                namespace=job.namespace,
                name=job.name,
                uid=job.uid,
                attempt=decided.status.attempt,
                reason=note.reason,
                message=note.message,
            )
            await self._tell(note, job)

    async def _tell(self, note: Note, job: Job) -> None:
        """Send one Event. One that cannot be sent is lost: nothing depends on it."""
        body = event(note, job=job, instance=self.settings.pod_name, now=self.now())
        try:
            await self.kube.create(EVENTS, body, namespace=job.namespace)
        except AlreadyExists:
            # Said before, by us or by the replica that led before us.
            return
        except KubeError as error:
            log_event(logger, "event_lost", level=logging.WARNING, error=str(error))

    def _count(self, before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
        ended = {a.number for a in before.attempts if a.ended is not None}
        for attempt in after.attempts:
            if attempt.ended is not None and attempt.number not in ended:
                self.metrics.attempts.labels(str(attempt.attempt_class)).inc()
        self.metrics.gpu_seconds.inc(max(0.0, after.gpu_seconds - before.gpu_seconds))
        if finished(after) and not finished(before):
            reason = after.display.reason or ""
            self.metrics.finished.labels(str(after.phase), reason).inc()

    def _keep_outcome(self, status: FineTuneJobStatus, job: Job) -> None:
        if status.attempts:
            self.board.kept(job.uid, status.attempts[-1].outcome)

    async def _act(self, action: Action, *, seen: Input, status: FineTuneJobStatus) -> None:
        job, spec, snapshot = seen.job, seen.spec, status.profile
        match action:
            case DeleteJob():
                await self._delete(job)
                return
            case StopChild(child):
                await self.children.stop(child, namespace=job.namespace)
                return
        if snapshot is None or isinstance(spec, ConfigError):
            return
        uri = snapshot.spec.tracking.uri
        match action:
            case EnsureRun():
                self.tracker.ensure_run(
                    job,
                    uri=uri,
                    experiment=spec.tracking.experiment or job.namespace,
                    tags=run_tags(job, release=self.settings.identity, extra=spec.tracking.tags),
                )
            case CloseRun(run_id, state):
                self.tracker.close_run(job, uri=uri, run_id=run_id, state=state)
            case CheckDigest(name, version):
                self.tracker.check_digest(job, uri=uri, name=name, version=version)
            case CreateChild(attempt):
                await self._create(seen, status=status, attempt=attempt, profile=snapshot.spec)

    async def _create(
        self, seen: Input, *, status: FineTuneJobStatus, attempt: int, profile: FineTuneProfileSpec
    ) -> None:
        mlflow = status.mlflow
        if isinstance(seen.spec, ConfigError) or mlflow is None or mlflow.run_id is None:
            raise AssertionError("a child is planned only for a valid spec with a run")
        await self.children.create(
            seen.job,
            spec=seen.spec,
            profile=profile,
            attempt=attempt,
            run_id=mlflow.run_id,
            output_uri=str(status.output_uri),
            config_digest=str(status.config_digest),
        )

    async def _delete(self, job: Job) -> None:
        try:
            await self.kube.delete(FINE_TUNE_JOBS, job.name, namespace=job.namespace, uid=job.uid)
        except NotFound:
            return
        log_event(logger, "job_expired", namespace=job.namespace, name=job.name, uid=job.uid)


def read_job(obj: Object) -> Job:
    """Identity of a FineTuneJob."""
    meta = obj["metadata"]
    created = parse_time(meta.get("creationTimestamp"))
    if created is None:
        raise Forbidden(f"{meta.get('name')} has no creation time; it did not come from the API")
    return Job(
        namespace=str(meta["namespace"]),
        name=str(meta["name"]),
        uid=str(meta["uid"]),
        generation=int(meta.get("generation") or 0),
        created=created,
        resource_version=str(meta["resourceVersion"]),
        deleting="deletionTimestamp" in meta,
    )


def read_spec(obj: Object) -> FineTuneJobSpec | ConfigError:
    """The spec, or what is wrong with it."""
    try:
        return FineTuneJobSpec.parse(obj.get("spec") or {})
    except ConfigError as error:
        return error


def read_profile(obj: Object) -> Profile:
    """A FineTuneProfile."""
    meta = obj["metadata"]
    spec: FineTuneProfileSpec | ConfigError
    try:
        spec = FineTuneProfileSpec.parse(obj.get("spec") or {})
    except ConfigError as error:
        spec = error
    return Profile(name=str(meta["name"]), generation=int(meta.get("generation") or 0), spec=spec)
