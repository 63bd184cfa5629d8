"""A scripted API server at the transport's edge. Time is looptime's: nothing really waits."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from anneal_operator.errors import AlreadyExists, Conflict, NotFound
from anneal_operator.kube import Object, Page, Selector
from anneal_operator.resources import Resource

Step = Any
HANG = object()
"""A watch that says nothing any more and does not end: a half-open connection."""


def obj(name: str, version: int, *, namespace: str = "ns", **meta: Any) -> Object:
    """An object as small as can be."""
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            **meta,
        }
    }


def page(*objects: Object, version: int, token: str = "") -> Page:
    return Page(items=objects, resource_version=str(version), continue_token=token)


def event(kind: str, body: Object) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


def bookmark(version: int) -> bytes:
    return event("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})


class _Lines:
    def __init__(self, steps: list[Step]) -> None:
        self._steps = deque(steps)

    async def readline(self) -> bytes:
        if not self._steps:
            return b""
        step = self._steps.popleft()
        if step is HANG:
            await asyncio.Event().wait()
        if isinstance(step, int | float):
            await asyncio.sleep(step)
            return await self.readline()
        if isinstance(step, BaseException):
            raise step
        return bytes(step)


class ScriptedApi:
    """Plays a script of lists and watches; after its end, the last watch hangs.

    A list is a Page or an exception. A watch is an exception (the request fails), or a list of
    steps: bytes (a line), a number (seconds of silence), an exception, or HANG.
    """

    def __init__(self, *, lists: list[Step], watches: list[Step]) -> None:
        self.lists, self.watches = deque(lists), deque(watches)
        self.requests: list[tuple[float, str, str]] = []
        """Loop time, `list` or `watch`, and the continue token or resource version sent."""

    def note(self, kind: str, detail: str) -> None:
        self.requests.append((asyncio.get_running_loop().time(), kind, detail))

    def count(self, kind: str) -> int:
        return sum(1 for _, what, _ in self.requests if what == kind)

    def details(self, kind: str) -> list[str]:
        return [detail for _, what, detail in self.requests if what == kind]

    async def list_page(
        self, resource: Resource, *, selector: Selector, continue_token: str = ""
    ) -> Page:
        self.note("list", continue_token)
        step = self.lists.popleft() if len(self.lists) > 1 else self.lists[0]
        if isinstance(step, BaseException):
            raise step
        return step

    @asynccontextmanager
    async def watch(
        self, resource: Resource, *, selector: Selector, resource_version: str, timeout_seconds: int
    ) -> AsyncIterator[_Lines]:
        self.note("watch", resource_version)
        step = self.watches.popleft() if self.watches else [HANG]
        if isinstance(step, BaseException):
            raise step
        yield _Lines(step)


class LeaseApi:
    """One Lease with optimistic locking, and ways for the server to fail."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.failure: BaseException | None = None
        self.hanging = False
        self.updates = 0
        self._version = 0

    async def _answer(self) -> None:
        if self.hanging:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure

    def _stored(self, body: Object) -> Object:
        self._version += 1
        body = json.loads(json.dumps(body))
        body["metadata"]["resourceVersion"] = str(self._version)
        self.lease = body
        return body

    async def get(self, resource: Resource, name: str, *, namespace: str) -> Object:
        await self._answer()
        if self.lease is None:
            raise NotFound("no such lease", status=404)
        return dict(json.loads(json.dumps(self.lease)))

    async def create(self, resource: Resource, body: Object, *, namespace: str) -> Object:
        await self._answer()
        if self.lease is not None:
            raise AlreadyExists("it is there", status=409)
        return self._stored(body)

    async def update(self, resource: Resource, body: Object, *, namespace: str) -> Object:
        await self._answer()
        self.updates += 1
        assert self.lease is not None
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict("stale", status=409)
        return self._stored(body)

    @property
    def holder(self) -> str:
        return str((self.lease or {}).get("spec", {}).get("holderIdentity", ""))


@pytest.fixture
def lease_api() -> LeaseApi:
    return LeaseApi()
