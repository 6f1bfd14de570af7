"""HTTP over a bare socket: for requests that no well-behaved client would send."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error object in OpenAI's form."""
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


@contextlib.contextmanager
def connected(url: str, timeout_s: float = 10.0) -> Iterator[socket.socket]:
    """A connection to the server of `url`."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=timeout_s) as connection:
        yield connection


def head(method: str, target: str, *lines: str) -> bytes:
    """A request's head."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "host: localhost", *lines, "", ""]).encode("latin-1")


def bearer(key: str) -> str:
    return f"authorization: Bearer {key}"


def post(body: bytes, *lines: str, target: str = "/v1/chat/completions") -> bytes:
    """A whole POST request."""
    return head("POST", target, f"content-length: {len(body)}", *lines) + body


def chunked(body: bytes, size: int = 65_536) -> Iterator[bytes]:
    """A body in chunks of HTTP/1.1, its length unannounced."""
    for at in range(0, len(body), size):
        part = body[at : at + size]
        yield b"%x\r\n%b\r\n" % (len(part), part)
    yield b"0\r\n\r\n"


def talk(url: str, *pieces: bytes | Iterable[bytes], method: str = "GET", timeout_s: float = 10.0) -> Answer:
    """Send everything, and meanwhile read the answer. The server may stop reading before all is sent."""
    with connected(url, timeout_s) as connection:
        sender = threading.Thread(target=_send, args=(connection, pieces), daemon=True)
        sender.start()
        answer = read(connection, method)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        sender.join(timeout_s)
        return answer


def read(connection: socket.socket, method: str = "GET") -> Answer:
    """The next answer on a connection."""
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        response.close()


def _send(connection: socket.socket, pieces: Iterable[bytes | Iterable[bytes]]) -> None:
    with contextlib.suppress(OSError):
        for piece in pieces:
            for part in [piece] if isinstance(piece, bytes) else piece:
                connection.sendall(part)
