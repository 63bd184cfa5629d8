"""A progress server that keeps what it is sent; the operator's own is tested with the operator."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ProgressRecorder:
    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.answer = 200
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                recorder.reports.append(json.loads(body))
                recorder.tokens.add(self.headers["Authorization"])
                self.send_response(recorder.answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # its own name
                """Keep the test's output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/status"

    @property
    def step(self) -> int:
        return max((r["anneal"].get("step", 0) for r in list(self.reports)), default=0)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
