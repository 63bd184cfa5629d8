"""Keeps a store equal to what the API server holds, through every kind of outage.

Lists in pages, then watches from the list's resource version with bookmarks, remembers the newest
version across reconnects, and lists again only when the server says that the version is gone.
Guarantees: an object that changed or vanished while we were cut off is told of after we are back;
no failure is answered faster than the backoff allows; a connection that has gone silent is noticed.
Resource versions are opaque here: kept and sent back, never compared or sorted.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from anneal_operator.backoff import Backoff
from anneal_operator.errors import Gone, KubeError, Unreachable, from_status
from anneal_operator.kube import Kube, Object, Selector
from anneal_operator.logs import log_event
from anneal_operator.resources import Resource
from anneal_operator.store import Store, key_of, version_of

WATCH_SECONDS_MIN, WATCH_SECONDS_MAX = 300, 600
IDLE_SECONDS = 90.0
"""Longest silence once bookmarks are seen: the server sends about one a minute."""
IDLE_GRACE_SECONDS = 30.0
"""Added to the server's own timeout where no bookmark was ever seen."""
INSTANT_SECONDS = 1.0
"""A watch that ends sooner than this takes the backoff (kubernetes/kubernetes#137089)."""

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Reflector:
    """List and watch of one kind in one namespace, or in all of them."""

    kube: Kube
    resource: Resource
    selector: Selector
    store: Store
    clock: Callable[[], float]
    random: Callable[[], float]
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    last_event_at: float = 0.0
    """Clock time of the last sign of life from the server."""
    num_lists: int = 0
    _resource_version: str = ""
    _bookmarks_seen: bool = False

    @property
    def name(self) -> str:
        where = self.selector.namespace
        return f"{self.resource.plural}/{where}" if where else self.resource.plural

    async def run(self) -> None:
        """Run until cancelled."""
        backoff = Backoff(clock=self.clock, random=self.random)
        while True:
            started_at = self.clock()
            problem: KubeError | None = None
            try:
                if not self._resource_version:
                    await self._list()
                    started_at = self.clock()
                await self._watch()
            except Gone as error:
                self._resource_version = ""
                problem = error
            except KubeError as error:
                problem = error
            if problem is None and self.clock() - started_at >= INSTANT_SECONDS:
                continue
            asked = problem.retry_after_seconds if problem else None
            delay = backoff.next_delay_seconds(at_least=asked)
            log_event(
                logger,
                "watch_interrupted",
                level=logging.WARNING if problem else logging.DEBUG,
                kind=self.name,
                error=str(problem) if problem else "the server closed the watch at once",
                retry_seconds=round(delay, 2),
            )
            await asyncio.sleep(delay)

    async def _list(self) -> None:
        objects: list[Object] = []
        token = ""
        while True:
            page = await self.kube.list_page(
                self.resource, selector=self.selector, continue_token=token
            )
            objects.extend(map(self._slim, page.items))
            self._alive()
            token = page.continue_token
            if not token:
                break
        self.store.replace(objects, namespace=self.selector.namespace)
        self._resource_version = page.resource_version
        self.num_lists += 1
        self.synced.set()

    async def _watch(self) -> None:
        spread = WATCH_SECONDS_MAX - WATCH_SECONDS_MIN
        timeout_seconds = WATCH_SECONDS_MIN + int(self.random() * spread)
        try:
            async with self.kube.watch(
                self.resource,
                selector=self.selector,
                resource_version=self._resource_version,
                timeout_seconds=timeout_seconds,
            ) as lines:
                while True:
                    idle = timeout_seconds + IDLE_GRACE_SECONDS
                    async with asyncio.timeout(IDLE_SECONDS if self._bookmarks_seen else idle):
                        line = await lines.readline()
                    if not line:
                        return
                    self._take(line)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            # ValueError: a line beyond aiohttp's bound (4 MiB), or one that is not JSON.
            raise Unreachable(f"watch of {self.name} broke off: {error!r}") from error

    def _take(self, line: bytes) -> None:
        event = json.loads(line)
        kind, obj = event["type"], event["object"]
        self._alive()
        if kind == "ERROR":
            raise from_status(int(obj.get("code") or 500), obj, request=f"watch of {self.name}")
        if kind == "BOOKMARK":
            self._bookmarks_seen = True
        elif kind == "DELETED":
            self.store.remove(key_of(obj))
        else:
            self.store.put(self._slim(obj))
        self._resource_version = version_of(obj) or self._resource_version

    def _slim(self, obj: dict[str, Any]) -> dict[str, Any]:
        """Drop what nobody reads and what makes up half of an object's size.

        Items of a list carry neither apiVersion nor kind; they are put back.
        """
        meta = obj["metadata"]
        meta.pop("managedFields", None)
        annotations = meta.get("annotations")
        if annotations:
            annotations.pop(_LAST_APPLIED, None)
        obj.setdefault("apiVersion", self.resource.api_version)
        obj.setdefault("kind", self.resource.kind)
        return obj

    def _alive(self) -> None:
        self.last_event_at = self.clock()
