"""The only file that talks to the Kubernetes API: eight verbs, plain dicts in and out.

`kubernetes.aio` is used for nothing but HTTP, TLS, kubeconfig and token refresh. Every request has
a timeout, every failure is one of `errors.KubeError`, reads are retried a little and writes never:
a write that failed goes back to the queue, which decides anew from what is then true.

aiohttp is handed a `ClientTimeout`, because the client's own `_request_timeout=None` means 300 s in
all and would end every long watch.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client, config

from anneal_operator.errors import (
    TRANSIENT,
    KubeError,
    SettingsError,
    Unreachable,
    from_status,
)
from anneal_operator.resources import Resource
from anneal_operator.token_bucket import TokenBucket

Object = dict[str, Any]

REQUEST_SECONDS = 15.0
LIST_SECONDS = 60.0
CONNECT_SECONDS = 5.0
PAGE_LIMIT = 500
READ_TRIES = 3
READ_RETRY_SECONDS = 0.3

_APPLY = "application/apply-patch+yaml"
_NETWORK_FAILURES = (aiohttp.ClientError, TimeoutError, ConnectionError, OSError)


@dataclass(frozen=True, slots=True)
class Selector:
    """What part of a kind a list or watch is about. `namespace` None means all of them."""

    namespace: str | None = None
    labels: str = ""
    fields: str = ""

    def params(self) -> dict[str, str]:
        chosen = {"labelSelector": self.labels, "fieldSelector": self.fields}
        return {name: value for name, value in chosen.items() if value}


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; `continue_token` is empty on the last one."""

    items: tuple[Object, ...]
    resource_version: str
    continue_token: str


@dataclass(slots=True)
class Kube:
    """A connection to one API server."""

    api: client.ApiClient
    writes: TokenBucket | None = None
    """Limit on writes; None for the few callers that must never wait (lease, token review)."""
    sleep: Callable[[float], Any] = field(default=asyncio.sleep)

    async def close(self) -> None:
        await self.api.close()

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Object:
        """Read one object from the server, past every cache of ours."""
        return await self._read(resource.path(namespace=namespace, name=name), {})

    async def list_page(
        self,
        resource: Resource,
        *,
        selector: Selector = Selector(),
        continue_token: str = "",
        limit: int = PAGE_LIMIT,
    ) -> Page:
        """Read one page of a kind."""
        params = {**selector.params(), "limit": str(limit)}
        if continue_token:
            params["continue"] = continue_token
        path = resource.path(namespace=selector.namespace)
        body = await self._read(path, params, timeout_seconds=LIST_SECONDS)
        meta = body.get("metadata") or {}
        return Page(
            items=tuple(body.get("items") or ()),
            resource_version=str(meta.get("resourceVersion") or ""),
            continue_token=str(meta.get("continue") or ""),
        )

    async def list_all(
        self,
        resource: Resource,
        *,
        selector: Selector = Selector(),
    ) -> tuple[Object, ...]:
        """Read a whole (small) kind."""
        items: list[Object] = []
        token = ""
        while True:
            page = await self.list_page(resource, selector=selector, continue_token=token)
            items.extend(page.items)
            token = page.continue_token
            if not token:
                return tuple(items)

    @asynccontextmanager
    async def watch(
        self,
        resource: Resource,
        *,
        selector: Selector,
        resource_version: str,
        timeout_seconds: int,
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """Open a watch; the caller reads lines and bounds each read in time."""
        params = {
            **selector.params(),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
        }
        path = resource.path(namespace=selector.namespace)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=timeout_seconds + 30
        )
        async with asyncio.timeout(REQUEST_SECONDS):
            response = await self._send("GET", path, params=params, timeout=timeout)
        try:
            yield response.content
        finally:
            response.close()

    async def create(
        self, resource: Resource, body: Object, *, namespace: str | None = None
    ) -> Object:
        """Create an object; `AlreadyExists` if one of that name is there."""
        return await self._write("POST", resource.path(namespace=namespace), body=body)

    async def update(
        self, resource: Resource, body: Object, *, namespace: str | None = None
    ) -> Object:
        """Replace an object; `Conflict` unless its resource version is the current one."""
        name = str(body["metadata"]["name"])
        return await self._write("PUT", resource.path(namespace=namespace, name=name), body=body)

    async def apply(
        self,
        resource: Resource,
        body: Object,
        *,
        namespace: str | None = None,
        field_manager: str,
        subresource: str = "",
    ) -> Object:
        """Server-side apply, forced: the fields in `body` are ours."""
        path = resource.path(
            namespace=namespace, name=str(body["metadata"]["name"]), subresource=subresource
        )
        params = {"fieldManager": field_manager, "force": "true"}
        return await self._write("PATCH", path, body=body, params=params, content_type=_APPLY)

    async def delete(
        self, resource: Resource, name: str, *, namespace: str | None = None, uid: str
    ) -> None:
        """Delete this very object (never a namesake), and what it owns before it."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground",
            "preconditions": {"uid": uid},
        }
        await self._write("DELETE", resource.path(namespace=namespace, name=name), body=body)

    async def _read(
        self, path: str, params: Mapping[str, str], *, timeout_seconds: float = REQUEST_SECONDS
    ) -> Object:
        for tries_left in reversed(range(READ_TRIES)):
            try:
                return await self._call("GET", path, params=params, timeout_seconds=timeout_seconds)
            except TRANSIENT as error:
                if not tries_left:
                    raise
                await self.sleep(error.retry_after_seconds or READ_RETRY_SECONDS)
        raise AssertionError("the loop above returns or raises")

    async def _write(
        self,
        method: str,
        path: str,
        *,
        body: Object,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        if self.writes is not None:
            await self.writes.take()
        return await self._call(
            method,
            path,
            params=params or {},
            body=body,
            content_type=content_type,
            timeout_seconds=REQUEST_SECONDS,
        )

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str],
        timeout_seconds: float,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS)
        response = await self._send(
            method, path, params=params, body=body, content_type=content_type, timeout=timeout
        )
        try:
            parsed: Object = json.loads(await response.read())
        except (*_NETWORK_FAILURES, ValueError) as error:
            raise Unreachable(f"{method} {path}: the answer broke off: {error!r}") from error
        return parsed

    async def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own type, not a number
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        """Send a request and return the response if it is a success."""
        headers = {
            "Accept": "application/json",
            "Content-Type": content_type,
            "User-Agent": str(self.api.user_agent),
        }
        query = f"?{urlencode(params)}" if params else ""
        request = f"{method} {path}"
        try:
            await self.api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            answer = await self.api.rest_client.request(
                method,
                f"{self.api.configuration.host}{path}{query}",
                headers=headers,
                body=body,
                _request_timeout=timeout,
            )
            response: aiohttp.ClientResponse = answer.response
            if response.status < 400:
                return response
            text = await response.read()
        except _NETWORK_FAILURES as error:
            raise Unreachable(f"{request}: no answer: {error!r}") from error
        raise _failure(response, text, request=request)


def _failure(response: aiohttp.ClientResponse, text: bytes, *, request: str) -> KubeError:
    try:
        body = json.loads(text)
    except ValueError:
        body = {"message": text[:200].decode(errors="replace")}
    return from_status(
        response.status,
        body if isinstance(body, dict) else {},
        retry_after_seconds=_retry_after(response.headers.get("Retry-After")),
        request=request,
    )


def _retry_after(header: str | None) -> float | None:
    """Seconds the server asks us to wait. Kubernetes sends whole seconds, never a date."""
    return min(float(header), 60.0) if header and header.isdigit() else None


async def connect(
    *,
    user_agent: str,
    kubeconfig: Path | None = None,
    context: str | None = None,
    writes: TokenBucket | None = None,
) -> Kube:
    """Connect as the pod's service account, or by a kubeconfig file where one is given."""
    configuration = client.Configuration()
    try:
        if kubeconfig is None:
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(
                config_file=str(kubeconfig),
                context=context,
                client_configuration=configuration,
                persist_config=False,
            )
    except (config.ConfigException, OSError) as error:
        where = kubeconfig or "the pod's service account"
        raise SettingsError(
            f"cannot connect to Kubernetes with {where}: {error}; "
            "run inside a cluster or set ANNEAL_KUBECONFIG to a kubeconfig file"
        ) from error
    api = client.ApiClient(configuration)
    api.user_agent = user_agent
    return Kube(api=api, writes=writes)
