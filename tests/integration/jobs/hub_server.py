"""A server on loopback that speaks as much of the hub's protocol as finding and fetching needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by `models/org/name` or `datasets/org/name`."""

    repositories: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and error code of repositories that are not given out."""
    endpoint: str = ""

    def information(self, name: str) -> dict[str, Any]:
        files = self.repositories[name]
        return {
            "id": name.split("/", 1)[1],
            "sha": COMMIT,
            "siblings": [{"rfilename": file, "size": len(data)} for file, data in files.items()],
            "cardData": self.cards.get(name, {}),
        }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        data = self._answer()
        try:
            self.wfile.write(data)
        except ConnectionError:
            """The client has ended the transfer."""

    def _answer(self) -> bytes:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_information = parts[0] == "api"
        if is_information:
            parts = parts[1:]
        elif parts[0] != "datasets":
            parts = ["models", *parts]
        name, revision, file = "/".join(parts[:3]), parts[4], "/".join(parts[5:])
        refusal = self.hub.refusals.get(name)
        if refusal is None and name not in self.hub.repositories:
            refusal = (404, "RepoNotFound")
        if refusal is None and revision != COMMIT:
            refusal = (404, "RevisionNotFound")
        if refusal is not None:
            return self._send(b"", status=refusal[0], headers={"X-Error-Code": refusal[1]})
        if is_information:
            return self._send(json.dumps(self.hub.information(name)).encode())
        data = self.hub.repositories[name][file]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{abs(hash((name, file)))}"'}
        return self._send(data, headers=headers)

    def _send(
        self, data: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> bytes:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return data

    def log_message(self, format: str, *args: Any) -> None:  # its own name
        """Keep the test's output clean."""


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
