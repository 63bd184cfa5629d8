"""The transport against a server in this process: every answer becomes a typed error, in time."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from anneal_operator import kube as transport
from anneal_operator.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    ServerFailure,
    SettingsError,
    Throttled,
    Unreachable,
)
from anneal_operator.kube import Kube, Selector, connect
from anneal_operator.resources import FINE_TUNE_JOBS, LEASES, PODS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server(handler: Handler, folder: Path) -> AsyncIterator[Kube]:
    """A connection to a server that answers everything with `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    kube = await connect(user_agent="anneal-tests", kubeconfig=kubeconfig(folder, port=port))
    kube.sleep = _no_sleep
    try:
        yield kube
    finally:
        await kube.close()
        await runner.cleanup()


async def _no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def kubeconfig(folder: Path, *, port: int) -> Path:
    file = folder / "kubeconfig"
    named = {"name": "test"}
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{**named, "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{**named, "user": {"token": "canary-token"}}],
                "contexts": [{**named, "context": {"cluster": "test", "user": "test"}}],
            }
        )
    )
    return file


def answer(status: int, *, reason: str = "", **headers: str) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        body = {"kind": "Status", "reason": reason, "message": "said the server", "code": status}
        return web.json_response(body, status=status, headers=headers)

    return handle


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        pytest.param(answer(400), Invalid, id="400"),
        pytest.param(answer(401), Forbidden, id="401"),
        pytest.param(answer(403), Forbidden, id="403"),
        pytest.param(answer(404), NotFound, id="404"),
        pytest.param(answer(409, reason="Conflict"), Conflict, id="conflict"),
        pytest.param(answer(409, reason="AlreadyExists"), AlreadyExists, id="exists"),
        pytest.param(answer(410, reason="Expired"), Gone, id="410"),
        pytest.param(answer(422), Invalid, id="422"),
        pytest.param(answer(429), Throttled, id="429"),
        pytest.param(answer(500), ServerFailure, id="500"),
        pytest.param(answer(503), ServerFailure, id="503"),
        pytest.param(answer(503, **{"Retry-After": "7"}), Throttled, id="503 with Retry-After"),
    ],
)
async def test_answers_become_errors(
    handler: Handler, error: type[KubeError], tmp_path: Path
) -> None:
    async with server(handler, tmp_path) as kube:
        with pytest.raises(error) as caught:
            await kube.create(PODS, {"metadata": {"name": "p"}}, namespace="ns")
    assert type(caught.value) is error
    assert "POST /api/v1/namespaces/ns/pods" in str(caught.value)
    assert "said the server" in str(caught.value)


async def test_retry_after_is_kept(tmp_path: Path) -> None:
    async with server(answer(429, **{"Retry-After": "7"}), tmp_path) as kube:
        with pytest.raises(Throttled) as caught:
            await kube.create(PODS, {"metadata": {"name": "p"}}, namespace="ns")
    assert caught.value.retry_after_seconds == 7


async def test_reads_are_tried_again_and_writes_are_not(tmp_path: Path) -> None:
    methods: list[str] = []

    async def failing(request: web.Request) -> web.Response:
        methods.append(request.method)
        return await answer(500)(request)  # type: ignore[return-value]

    async with server(failing, tmp_path) as kube:
        with pytest.raises(ServerFailure):
            await kube.get(PODS, "p", namespace="ns")
        with pytest.raises(ServerFailure):
            await kube.delete(PODS, "p", namespace="ns", uid="u")
    assert methods == ["GET", "GET", "GET", "DELETE"]


async def test_a_server_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "REQUEST_SECONDS", 0.05)
    never = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    async with server(hang, tmp_path) as kube:
        with pytest.raises(Unreachable):
            await kube.create(PODS, {"metadata": {"name": "p"}}, namespace="ns")
        never.set()


async def test_a_reset_and_a_torn_answer_are_unreachable(tmp_path: Path) -> None:
    async def reset(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def torn(_: web.Request) -> web.Response:
        return web.Response(body=b'{"metadata": ')

    for handler in (reset, torn):
        async with server(handler, tmp_path) as kube:
            with pytest.raises(Unreachable):
                await kube.create(PODS, {"metadata": {"name": "p"}}, namespace="ns")


async def test_nobody_listening_is_unreachable(tmp_path: Path) -> None:
    kube = await connect(user_agent="anneal-tests", kubeconfig=kubeconfig(tmp_path, port=1))
    kube.sleep = _no_sleep
    with pytest.raises(Unreachable):
        await kube.get(PODS, "p", namespace="ns")
    await kube.close()


async def test_requests_say_who_we_are_and_what_we_want(tmp_path: Path) -> None:
    told: list[tuple[str, str, dict[str, str], Any]] = []

    async def keep(request: web.Request) -> web.Response:
        text = await request.text()
        headers = {k: request.headers[k] for k in ("User-Agent", "Authorization", "Content-Type")}
        told.append((request.method, request.path_qs, headers, json.loads(text) if text else None))
        return web.json_response({"metadata": {}})

    async with server(keep, tmp_path) as kube:
        body = {"metadata": {"name": "bot"}, "status": {"phase": "Running"}}
        await kube.apply(
            FINE_TUNE_JOBS, body, namespace="ns", field_manager="anneal", subresource="status"
        )
        await kube.delete(PODS, "p", namespace="ns", uid="u-1")
        await kube.update(LEASES, {"metadata": {"name": "l"}}, namespace="ns")

    (applied, deleted, updated) = told
    assert applied[0] == "PATCH"
    assert applied[1] == (
        "/apis/anneal.dev/v1alpha1/namespaces/ns/finetunejobs/bot/status"
        "?fieldManager=anneal&force=true"
    )
    assert applied[2]["Content-Type"] == "application/apply-patch+yaml"
    assert applied[2]["User-Agent"] == "anneal-tests"
    assert applied[2]["Authorization"] == "Bearer canary-token"
    assert deleted[3]["propagationPolicy"] == "Foreground"
    assert deleted[3]["preconditions"] == {"uid": "u-1"}
    assert updated[:2] == ("PUT", "/apis/coordination.k8s.io/v1/namespaces/ns/leases/l")


async def test_a_watch_asks_for_bookmarks_and_streams_lines(tmp_path: Path) -> None:
    asked: dict[str, str] = {}

    async def stream(request: web.Request) -> web.StreamResponse:
        asked.update(request.query)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type":"ADDED"}\n{"type":"BOOK')
        await response.write(b'MARK"}\n')
        return response

    async with (
        server(stream, tmp_path) as kube,
        kube.watch(
            PODS, selector=Selector(labels="a=b"), resource_version="7", timeout_seconds=300
        ) as lines,
    ):
        got = [await lines.readline() for _ in range(3)]
    assert got == [b'{"type":"ADDED"}\n', b'{"type":"BOOKMARK"}\n', b""]
    assert asked == {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "7",
        "timeoutSeconds": "300",
        "labelSelector": "a=b",
    }


async def test_an_error_names_no_token(tmp_path: Path) -> None:
    async with server(answer(403), tmp_path) as kube:
        with pytest.raises(Forbidden) as caught:
            await kube.get(PODS, "p", namespace="ns")
    assert "canary-token" not in str(caught.value)


async def test_a_missing_kubeconfig_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ANNEAL_KUBECONFIG"):
        await connect(user_agent="anneal-tests", kubeconfig=tmp_path / "absent")
