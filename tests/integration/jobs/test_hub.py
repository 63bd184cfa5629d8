"""Files of a hub: a server on loopback that speaks as much of its protocol as a download needs."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from anneal_jobs.storage.hub import HubRepository, download_file
from anneal_pipeline.errors import StopRequestedError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARD = bytes(range(256)) * (96 << 10)
REPOSITORY = HubRepository(
    name="org/model", kind="model", revision=COMMIT, not_found_reason="ModelNotFound"
)


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"shard"')
        self.send_header("Content-Length", str(len(SHARD)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        try:
            self.wfile.write(SHARD)
        except ConnectionError:
            """The client has ended the transfer."""

    def log_message(self, format: str, *args: Any) -> None:  # its own name
        """Keep the test's output clean."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_bytes_are_told_while_a_file_comes(hub: str, tmp_path: Path) -> None:
    seen: list[int] = []
    path = download_file(
        REPOSITORY, "model.safetensors", to=tmp_path, endpoint=hub, on_chunk=seen.append
    )
    assert path.read_bytes() == SHARD
    assert sum(seen) == len(SHARD)
    assert len(seen) > 1


def test_a_stop_in_the_middle_leaves_no_file(hub: str, tmp_path: Path) -> None:
    def stop(count: int) -> None:
        raise StopRequestedError

    with pytest.raises(StopRequestedError):
        download_file(REPOSITORY, "model.safetensors", to=tmp_path, endpoint=hub, on_chunk=stop)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert [path for path in left if "safetensors" in path.name or "incomplete" in path.name] == []
