"""MLflow's REST API against a server in this process: whose fault each answer is."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from anneal_operator import mlflow_rest
from anneal_operator.errors import TrackingDenied, TrackingError, TrackingRejected
from anneal_operator.metrics import Metrics
from anneal_operator.mlflow_rest import MlflowServer
from anneal_operator.observation import Job
from anneal_operator.settings import Settings, TrackingServer
from anneal_operator.tracking import Tracker
from anneal_operator.workqueue import Key

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[MlflowServer]:
    """An MLflow server that answers everything with `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    uri = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        yield MlflowServer(session, TrackingServer(uri=uri))
    await runner.cleanup()


def answer(status: int, body: Any) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        if isinstance(body, str):
            return web.Response(status=status, text=body)
        return web.json_response(body, status=status)

    return handle


def refusal(status: int, code: str) -> Handler:
    return answer(status, {"error_code": code, "message": "so says MLflow"})


async def hang_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def hang(_: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


async def make_run(mlflow: MlflowServer) -> None:
    await mlflow.create_run("1", name="n", tags={"a=b": "c"}, start_time_ms=1)


KINDS = [
    pytest.param(refusal(400, "INVALID_PARAMETER_VALUE"), TrackingRejected, id="tags"),
    pytest.param(refusal(400, "BAD_REQUEST"), TrackingDenied, id="a database error"),
    pytest.param(refusal(404, "RESOURCE_DOES_NOT_EXIST"), TrackingDenied, id="a lost experiment"),
    pytest.param(refusal(403, "PERMISSION_DENIED"), TrackingDenied, id="no right"),
    pytest.param(answer(401, "You are not authenticated."), TrackingDenied, id="no login"),
    pytest.param(answer(302, ""), TrackingDenied, id="a login page"),
    pytest.param(answer(404, "<html>"), TrackingDenied, id="no MLflow there"),
    pytest.param(answer(429, "slow down"), TrackingError, id="too many calls"),
    pytest.param(refusal(503, "TEMPORARILY_UNAVAILABLE"), TrackingError, id="no database"),
    pytest.param(hang_up, TrackingError, id="a broken connection"),
]


@pytest.mark.parametrize(("handler", "kind"), KINDS)
async def test_whose_fault_an_answer_is(handler: Handler, kind: type[TrackingError]) -> None:
    async with server(handler) as mlflow:
        with pytest.raises(TrackingError) as raised:
            await make_run(mlflow)
    assert type(raised.value) is kind


async def test_refused_words_are_named_by_their_field() -> None:
    async with server(refusal(400, "INVALID_PARAMETER_VALUE")) as mlflow:
        with pytest.raises(TrackingRejected, match=r"refuses spec\.tracking\.tags: so says MLflow"):
            await make_run(mlflow)
        with pytest.raises(TrackingRejected, match=r"spec\.tracking\.experiment"):
            await mlflow.experiment_id("x")


async def test_our_own_words_are_never_the_users_fault() -> None:
    async with server(refusal(400, "INVALID_PARAMETER_VALUE")) as mlflow:
        with pytest.raises(TrackingDenied):
            await mlflow.search_runs(["1"], where="ours")


async def test_a_run_that_is_deleted_already_is_deleted() -> None:
    async with server(refusal(404, "RESOURCE_DOES_NOT_EXIST")) as mlflow:
        await mlflow.delete_run("r")
        await mlflow.close_run("r", status="FAILED", end_time_ms=1)


RUN_WITH_HALF_A_TAG = {"info": {"run_id": "r", "experiment_id": "1"}, "data": {"tags": [{}]}}
STRANGE: list[tuple[str, Any]] = [
    ("experiment_id", {"experiment": "x"}),
    ("experiment_id", {"experiment": {"lifecycle_stage": "active"}}),
    ("search_runs", {"runs": [{"info": None}]}),
    ("search_runs", {"runs": [RUN_WITH_HALF_A_TAG]}),
    ("experiment_ids", {"experiments": [{}]}),
    ("version_tag", {"model_version": {"tags": [{"key": "k"}]}}),
]


@pytest.mark.parametrize(("call", "body"), STRANGE)
async def test_an_answer_of_another_shape_is_a_failure_of_the_servers(call: str, body: Any) -> None:
    async with server(answer(200, body)) as mlflow:
        calls = {
            "experiment_id": lambda: mlflow.experiment_id("x"),
            "search_runs": lambda: mlflow.search_runs(["1"], where=""),
            "experiment_ids": mlflow.experiment_ids,
            "version_tag": lambda: mlflow.version_tag("m", "1", tag="k"),
        }
        with pytest.raises(TrackingError, match="is it MLflow 3"):
            await calls[call]()


JOB = Job(
    namespace="team-a",
    name="bot",
    uid="u",
    generation=1,
    created=datetime(2026, 11, 21, tzinfo=UTC),
    resource_version="1",
)


@pytest.mark.parametrize(
    ("handler", "fault"),
    [
        pytest.param(hang_up, "Silent", id="silent"),
        pytest.param(answer(401, "who are you"), "Denied", id="denied"),
        pytest.param(refusal(400, "INVALID_PARAMETER_VALUE"), "Rejected", id="rejected"),
    ],
)
async def test_every_failure_is_kept_and_makes_the_job_due(handler: Handler, fault: str) -> None:
    woken: asyncio.Queue[Key] = asyncio.Queue()
    async with server(handler) as mlflow:
        settings = Settings(
            release="r",
            pod_namespace="n",
            pod_name="p",
            progress_url="https://localhost",
            progress_tls_dir=Path("/nowhere"),
            tracking_servers=(mlflow.server,),
        )
        tracker = Tracker(
            settings=settings,
            session=mlflow.session,
            metrics=Metrics(version="test"),
            wake=woken.put_nowait,
        )
        tracker.ensure_run(JOB, uri=mlflow.server.uri, experiment="team-a", tags={})
        assert await woken.get() == Key("team-a", "bot")
        await tracker.close()
    known = tracker.known("u")
    assert known.fault == fault
    assert known.error


async def test_a_server_that_hangs_holds_nobody_up_and_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mlflow_rest, "CALL_SECONDS", 0.05)
    async with server(hang) as mlflow:
        asking = asyncio.create_task(make_run(mlflow))
        await asyncio.sleep(0)
        assert not asking.done()
        with pytest.raises(TrackingError):
            await asking
