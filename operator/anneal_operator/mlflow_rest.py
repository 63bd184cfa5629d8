"""The eight calls of MLflow's REST API that the operator needs, over aiohttp.

MLflow's own client blocks, keeps credentials in the process environment (one set for all servers)
and takes a second and 100 MB to import; the REST API is the stable contract beneath it.
Credentials are read again for each call, because a mounted Secret may be rotated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from anneal_operator.errors import TrackingDenied, TrackingError, TrackingRejected
from anneal_operator.settings import TrackingServer

CALL_SECONDS = 10.0
PAGE_LIMIT = 1000
_LATER = (408, 425, 429)
"""Of the 4xx, those that say that the same call may succeed later."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRun:
    """A run as MLflow tells of it."""

    run_id: str
    experiment_id: str
    start_time: int
    tags: dict[str, str]


@dataclass(frozen=True, slots=True)
class MlflowServer:
    """One MLflow server."""

    session: aiohttp.ClientSession
    server: TrackingServer

    async def experiment_id(self, name: str) -> str:
        """Find or make an experiment."""
        found = await self._experiment(name)
        if found is not None:
            return found
        made = await self._call(
            "POST",
            "experiments/create",
            {"name": name},
            also=("RESOURCE_ALREADY_EXISTS",),
            words="spec.tracking.experiment",
        )
        if "experiment_id" in made:
            return str(made["experiment_id"])
        found = await self._experiment(name)
        if found is None:
            raise TrackingRejected(
                f"experiment {name!r} exists in {self.server.uri} but was deleted; apply the job "
                "again with another spec.tracking.experiment, or after restoring that one"
            )
        return found

    async def _experiment(self, name: str) -> str | None:
        answer = await self._call(
            "GET",
            "experiments/get-by-name",
            {"experiment_name": name},
            also=("RESOURCE_DOES_NOT_EXIST",),
            words="spec.tracking.experiment",
        )
        with self._reading("an experiment"):
            experiment = answer.get("experiment")
            if not experiment or experiment.get("lifecycle_stage") != "active":
                return None
            return str(experiment["experiment_id"])

    async def search_runs(self, experiment_ids: list[str], *, where: str) -> list[FoundRun]:
        """Runs that match a filter, the oldest first."""
        found: list[FoundRun] = []
        token = ""
        while True:
            body: Json = {
                "experiment_ids": experiment_ids,
                "filter": where,
                "max_results": PAGE_LIMIT,
                "order_by": ["attributes.start_time ASC"],
            }
            if token:
                body["page_token"] = token
            answer = await self._call("POST", "runs/search", body)
            with self._reading("a run"):
                found += [_run(run) for run in answer.get("runs") or ()]
            token = str(answer.get("next_page_token") or "")
            if not token:
                return found

    async def experiment_ids(self) -> list[str]:
        """Every active experiment."""
        found: list[str] = []
        token = ""
        while True:
            body: Json = {"max_results": PAGE_LIMIT}
            if token:
                body["page_token"] = token
            answer = await self._call("POST", "experiments/search", body)
            with self._reading("an experiment"):
                found += [str(e["experiment_id"]) for e in answer.get("experiments") or ()]
            token = str(answer.get("next_page_token") or "")
            if not token:
                return found

    async def create_run(
        self, experiment_id: str, *, name: str, tags: dict[str, str], start_time_ms: int
    ) -> None:
        """Make a run. The caller searches for it afterwards, because another may have made one."""
        body = {
            "experiment_id": experiment_id,
            "run_name": name,
            "start_time": start_time_ms,
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        await self._call("POST", "runs/create", body, words="spec.tracking.tags")

    async def delete_run(self, run_id: str) -> None:
        """Mark a run as deleted; MLflow's garbage collection removes it for good."""
        gone = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
        await self._call("POST", "runs/delete", {"run_id": run_id}, also=gone)

    async def close_run(self, run_id: str, *, status: str, end_time_ms: int) -> None:
        """Set a run's final status. A run that somebody deleted needs none."""
        body = {"run_id": run_id, "status": status, "end_time": end_time_ms}
        deleted = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
        await self._call("POST", "runs/update", body, also=deleted)

    async def version_tag(self, name: str, version: str, *, tag: str) -> str | None:
        """A tag of a registered version; None if there is no such version or tag."""
        answer = await self._call(
            "GET",
            "model-versions/get",
            {"name": name, "version": version},
            also=("RESOURCE_DOES_NOT_EXIST",),
        )
        with self._reading("a model version"):
            tags = (answer.get("model_version") or {}).get("tags") or ()
            return next((str(t["value"]) for t in tags if t["key"] == tag), None)

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """An answer of another shape than MLflow 3's is a failure of the server's."""
        try:
            yield
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise TrackingError(
                f"{self.server.uri} described {what} strangely ({error!r}); is it MLflow 3?"
            ) from error

    async def _call(
        self, method: str, path: str, body: Json, *, also: tuple[str, ...] = (), words: str = ""
    ) -> Json:
        """Call one endpoint. The error codes in `also` are answers, given back as they are.

        `words` names the field of the job whose text the call carries: if MLflow finds the value
        invalid, that field is wrong.
        """
        url = f"{self.server.uri.rstrip('/')}/api/2.0/mlflow/{path}"
        where = f"{method} {path} at {self.server.uri}"
        try:
            async with self.session.request(
                method,
                url,
                params=body if method == "GET" else None,
                json=None if method == "GET" else body,
                headers=_authorization(self.server.credentialsDir),
                timeout=aiohttp.ClientTimeout(total=CALL_SECONDS),
                allow_redirects=False,
            ) as response:
                status = response.status
                text = await response.text()
                answer: Any = await response.json(content_type=None) if _is_json(text) else {}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise TrackingError(f"{where}: no answer ({error or type(error).__name__})") from error
        if status == 200 and isinstance(answer, dict):
            return answer
        code = answer.get("error_code") if isinstance(answer, dict) else None
        if code in also:
            return dict(answer)
        detail = (answer.get("message") if isinstance(answer, dict) else None) or text[:200]
        if words and code == "INVALID_PARAMETER_VALUE":
            raise TrackingRejected(
                f"MLflow at {self.server.uri} refuses {words}: {detail}; correct it and apply the "
                "job again"
            )
        kind = TrackingDenied if 300 <= status < 500 and status not in _LATER else TrackingError
        raise kind(f"{where}: answered {status}: {detail}")


def _is_json(text: str) -> bool:
    return text.lstrip()[:1] == "{"


def _run(run: Json) -> FoundRun:
    info, data = run["info"], run.get("data") or {}
    return FoundRun(
        run_id=str(info["run_id"]),
        experiment_id=str(info["experiment_id"]),
        start_time=int(info.get("start_time") or 0),
        tags={str(t["key"]): str(t["value"]) for t in data.get("tags") or ()},
    )


def _authorization(folder: Path | None) -> dict[str, str]:
    """The header for the mounted credentials: basic, bearer, or none."""
    if folder is None:
        return {}
    files = {
        name: (folder / name).read_text().strip()
        for name in ("username", "password", "token")
        if (folder / name).is_file()
    }
    if "token" in files:
        return {"Authorization": f"Bearer {files['token']}"}
    if "username" in files and "password" in files:
        header = aiohttp.BasicAuth(files["username"], files["password"]).encode()
        return {"Authorization": header}
    return {}
