"""The HTTPS server that training pods report to: Kubeflow Trainer's protocol with an `anneal` part.

A token counts only if TokenReview accepts it for this very job's audience and its pod is a pod of
the job's current attempt; a pod of an older attempt is told so (409) and stops. The pod has no
other right at all. A standby passes reports on to the leader, whose address is in the lease.

An outcome is answered with 200 only when it is in the job's status, so that a trainer whose answer
was lost may simply send it again.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from anneal_operator.api import names
from anneal_operator.api.progress import BODY_BYTES_MAX, ProgressReport
from anneal_operator.api.status import FineTuneJobStatus
from anneal_operator.caches import pods_of
from anneal_operator.conditions import finished
from anneal_operator.errors import KubeError
from anneal_operator.kube import Kube, Object, Selector
from anneal_operator.logs import log_event
from anneal_operator.metrics import Metrics
from anneal_operator.progress_board import ProgressBoard
from anneal_operator.resources import PODS, TOKEN_REVIEWS
from anneal_operator.store import Store
from anneal_operator.workqueue import Key
from anneal_pipeline.config.schema import ConfigError

PATH = "/apis/anneal.dev/v1alpha1/namespaces/{namespace}/finetunejobs/{name}/status"
READ_SECONDS = 10.0
KEEP_SECONDS = 8.0
FORWARD_SECONDS = 12.0
RELOAD_SECONDS = 60.0
TOKEN_CACHE_SECONDS = 60.0
POD_UID_EXTRA = "authentication.kubernetes.io/pod-uid"
FORWARDED_HEADER = "X-Anneal-Forwarded"

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ProgressServer:
    """Takes reports for the jobs in `jobs` from the pods in `pods`."""

    kube: Kube
    """A connection without a write limit, for token reviews."""
    jobs: Store
    pods: Store
    board: ProgressBoard
    metrics: Metrics
    leading: Callable[[], bool]
    synced: Callable[[], bool]
    """Whether the caches have been filled; before that nothing can be said of a job."""
    leader_address: Callable[[], str]
    """`host:port` of the leader's progress server; empty if unknown."""
    forward: aiohttp.ClientSession
    """Session for passing reports on; trusts the progress CA."""
    server_name: str
    """Name in the certificate, whatever address the leader has."""
    clock: Callable[[], float]
    _reviewed: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Token and audience to the time until which, and the pod for which, it was found good."""

    def application(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post(PATH, self.handle)
        return app

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one POST."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return self._answer(413, f"a report has at most {BODY_BYTES_MAX} bytes")
        except (TimeoutError, aiohttp.ClientError, ConnectionError):
            return self._answer(408, f"the report did not arrive within {READ_SECONDS:.0f} s")
        if not self.leading():
            return await self._pass_on(request, body)
        if not self.synced():
            return self._answer(503, "the operator is starting; try again")
        key = Key(request.match_info["namespace"], request.match_info["name"])
        return await self._take(request, key=key, body=body)

    async def _take(self, request: web.Request, *, key: Key, body: bytes) -> web.Response:
        job = self.jobs.get(key)
        if job is None:
            return self._answer(404, f"there is no FineTuneJob {key}")
        job_uid = str(job["metadata"]["uid"])
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return self._answer(401, "send the projected token as a bearer token")
        try:
            pod_uid = await self._pod_of(token.strip(), audience=names.progress_audience(job_uid))
            pod = await self._pod(job, uid=pod_uid) if pod_uid else None
        except KubeError as error:
            log_event(logger, "token_review_failed", level=logging.WARNING, error=str(error))
            return self._answer(503, "the token cannot be checked now; try again")
        if pod_uid is None:
            return self._answer(401, "the token is not valid for this job")
        report = read_report(body)
        if report is None:
            return self._answer(400, "the body is no progress report")
        if pod is None:
            return self._answer(403, f"pod {pod_uid} is no pod of {key}")
        answer = self._judge(job, key=key, pod=pod, report=report)
        if answer is not None:
            return answer
        self.board.put(key, job_uid=job_uid, body=report)
        if report.anneal.outcome is not None and not await self.board.until_kept(
            job_uid, seconds=KEEP_SECONDS
        ):
            return self._answer(503, "the outcome is not in the status yet; send it again")
        return self._answer(200, "ok")

    def _judge(
        self, job: Object, *, key: Key, pod: Object, report: ProgressReport
    ) -> web.Response | None:
        """An answer that needs no further work, such as 409: the attempt is not current."""
        try:
            status = FineTuneJobStatus.parse(job.get("status") or {})
        except ConfigError:
            return self._answer(503, f"the status of {key} cannot be read by this operator")
        label = str((pod["metadata"].get("labels") or {}).get(names.LABEL_ATTEMPT))
        if label != str(report.anneal.attempt):
            return self._answer(403, f"the pod is of attempt {label}, not of the one it reports")
        if report.anneal.attempt > status.attempt:
            return self._answer(503, "this attempt is not known here yet; try again")
        last = status.attempts[-1] if status.attempts else None
        if (
            last
            and last.outcome
            and (last.number, last.outcome)
            == (
                report.anneal.attempt,
                report.anneal.outcome,
            )
        ):
            return self._answer(200, "known")
        if report.anneal.attempt < status.attempt or finished(status) or (last and last.ended):
            return self._answer(
                409, f"attempt {label} is no longer the current one ({status.attempt}); stop"
            )
        return None

    async def _pod(self, job: Object, *, uid: str) -> Object | None:
        """The job's pod of that uid. A pod may report before our watch has told of it."""
        job_uid, namespace = str(job["metadata"]["uid"]), str(job["metadata"]["namespace"])
        known = _by_uid(pods_of(self.pods, job_uid=job_uid, namespace=namespace), uid)
        if known is not None:
            return known
        selector = Selector(namespace=namespace, labels=f"{names.LABEL_JOB_UID}={job_uid}")
        return _by_uid(await self.kube.list_all(PODS, selector=selector), uid)

    async def _pod_of(self, token: str, *, audience: str) -> str | None:
        """The uid of the pod that the token was made for, if the API server vouches for it."""
        cached = self._reviewed.get(f"{audience} {token}")
        now = self.clock()
        if cached is not None and cached[0] > now:
            return cached[1]
        review = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "spec": {"token": token, "audiences": [audience]},
        }
        status = (await self.kube.create(TOKEN_REVIEWS, review)).get("status") or {}
        if not status.get("authenticated") or audience not in (status.get("audiences") or ()):
            return None
        extra = (status.get("user") or {}).get("extra") or {}
        pod_uid = next(iter(extra.get(POD_UID_EXTRA) or ()), None)
        if pod_uid is not None:
            self._reviewed = {k: v for k, v in self._reviewed.items() if v[0] > now}
            self._reviewed[f"{audience} {token}"] = (now + TOKEN_CACHE_SECONDS, pod_uid)
        return pod_uid

    async def _pass_on(self, request: web.Request, body: bytes) -> web.Response:
        address = self.leader_address()
        if not address or FORWARDED_HEADER in request.headers:
            return self._answer(503, "no leader at the moment; try again")
        headers = {
            "Authorization": request.headers.get("Authorization", ""),
            "Content-Type": "application/json",
            FORWARDED_HEADER: "1",
        }
        try:
            async with self.forward.post(
                f"https://{address}{request.path}",
                data=body,
                headers=headers,
                server_hostname=self.server_name,
                timeout=aiohttp.ClientTimeout(total=FORWARD_SECONDS),
            ) as answer:
                return web.Response(status=answer.status, text=await answer.text())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log_event(logger, "forward_failed", level=logging.WARNING, error=repr(error))
            return self._answer(503, "the leader does not answer; try again")

    def _answer(self, status: int, text: str) -> web.Response:
        self.metrics.reports.labels(str(status)).inc()
        return web.json_response({"message": text}, status=status)


def _by_uid(pods: Iterable[Object], uid: str) -> Object | None:
    return next((pod for pod in pods if pod["metadata"]["uid"] == uid), None)


def read_report(body: bytes) -> ProgressReport | None:
    """Read a report; a body that is none gives None."""
    try:
        return ProgressReport.model_validate_json(body, strict=True, by_alias=True, by_name=False)
    except ValueError:
        return None


async def reload_certificate(context: ssl.SSLContext, folder: Path) -> None:
    """Take up a renewed certificate for new connections. Runs until cancelled."""
    loaded = (folder / "tls.crt").read_bytes()
    while True:
        await asyncio.sleep(RELOAD_SECONDS)
        found = (folder / "tls.crt").read_bytes()
        if found != loaded:
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
            loaded = found
            log_event(logger, "certificate_reloaded")


def server_context(folder: Path) -> ssl.SSLContext:
    """TLS for the server, from `tls.crt` and `tls.key` in `folder`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context
