"""A small HTTP server that answers as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Canned:
    """An answer. A list of pieces is sent as a stream, each flushed on its own."""

    body: bytes | list[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeApi:
    """What the server answers by path, and the requests that came in."""

    url: str = ""
    answers: dict[str, Canned] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str], dict[str, object]]] = field(default_factory=list)

    def json(self, path: str, value: object, status: int = 200) -> None:
        self.answers[path] = Canned(json.dumps(value).encode(), status, {"content-type": "application/json"})


@contextmanager
def fake_api() -> Iterator[FakeApi]:
    api = FakeApi()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(length)) if length else {}
            api.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            canned = api.answers.get(self.path, Canned(b"{}", 404))
            self.send_response(canned.status)
            for name, value in canned.headers.items():
                self.send_header(name, value)
            self.send_header("connection", "close")
            self.end_headers()
            for piece in canned.body if isinstance(canned.body, list) else [canned.body]:
                self.wfile.write(piece)
                self.wfile.flush()

        do_POST = do_GET  # noqa: N815 - the name that http.server calls

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
