"""The part of HTTP/1.1 that a load client needs: requests out, responses in, without I/O.

A client that shares its cores with the server under test must cost little, so this knows only what a streaming
response uses: status line, headers, and a body framed by chunks, by length or by the end of the connection.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

_MAX_HEAD: Final = 65_536


class MalformedResponseError(ValueError):
    """What came is not an HTTP/1.1 response."""


class _Framing(Enum):
    HEAD = auto()
    CHUNK_SIZE = auto()
    CHUNK_DATA = auto()
    TRAILER = auto()
    LENGTH = auto()
    UNTIL_CLOSE = auto()
    DONE = auto()


def encode_request(
    method: str, path: str, authority: str, headers: tuple[tuple[str, str], ...], body: bytes = b""
) -> bytes:
    """A whole request. Raises `ValueError` for a header or path with a line break in it."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {authority}", *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines.append(f"content-length: {len(body)}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header or path has a line break in it")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class ResponseParser:
    """Takes the bytes of one response as they arrive."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._framing = _Framing.HEAD
        self._buffer = b""
        self._left = 0

    @property
    def complete(self) -> bool:
        """Whether the whole response has arrived."""
        return self._framing is _Framing.DONE

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry a further request."""
        return self.complete and self.headers.get("connection", "").lower() != "close" and not self._buffer

    def feed(self, data: bytes) -> bytes:
        """Body bytes in `data`, framing removed. Raises `MalformedResponseError`."""
        self._buffer += data
        body: list[bytes] = []
        while self._advance(body):
            pass
        return b"".join(body) if len(body) != 1 else body[0]

    def end_of_stream(self) -> None:
        """The server closed the connection; that completes a body without a length."""
        if self._framing is _Framing.UNTIL_CLOSE:
            self._framing = _Framing.DONE

    def _advance(self, body: list[bytes]) -> bool:
        """One step; False when more bytes are needed."""
        framing = self._framing
        if framing is _Framing.CHUNK_DATA or framing is _Framing.LENGTH:
            return self._take_counted(body)
        if framing is _Framing.HEAD:
            return self._take_head()
        if framing is _Framing.CHUNK_SIZE:
            return self._take_size()
        if framing is _Framing.TRAILER:
            return self._take_trailer()
        if framing is _Framing.UNTIL_CLOSE and self._buffer:
            body.append(self._buffer)
            self._buffer = b""
        return False

    def _take_counted(self, body: list[bytes]) -> bool:
        taken = self._buffer[: self._left]
        if taken:
            body.append(taken)
            self._buffer = self._buffer[len(taken) :]
            self._left -= len(taken)
        if self._left:
            return False
        if self._framing is _Framing.LENGTH:
            self._framing = _Framing.DONE
            return False
        if len(self._buffer) < 2:
            return False
        if self._buffer[:2] != b"\r\n":
            raise MalformedResponseError("a chunk is longer than it said")
        self._buffer = self._buffer[2:]
        self._framing = _Framing.CHUNK_SIZE
        return True

    def _take_size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        try:
            self._left = int(line.split(b";", 1)[0], 16)
        except ValueError:
            raise MalformedResponseError("a chunk has no size") from None
        self._framing = _Framing.CHUNK_DATA if self._left else _Framing.TRAILER
        return True

    def _take_trailer(self) -> bool:
        line = self._line()
        if line is None:
            return False
        if not line:
            self._framing = _Framing.DONE
        return True

    def _take_head(self) -> bool:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            if len(self._buffer) > _MAX_HEAD:
                raise MalformedResponseError(f"the response head is over {_MAX_HEAD} bytes")
            return False
        status_line, *lines = head.decode("latin-1").split("\r\n")
        words = status_line.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
            raise MalformedResponseError("the response has no HTTP/1.1 status line")
        self._buffer = rest
        status = int(words[1])
        if 100 <= status < 200:
            return True
        self.status = status
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._framing = self._body_framing()
        return self._framing is not _Framing.DONE

    def _body_framing(self) -> _Framing:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return _Framing.CHUNK_SIZE
        length = self.headers.get("content-length")
        if self.status in (204, 304) or length == "0":
            return _Framing.DONE
        if length is None:
            return _Framing.UNTIL_CLOSE
        if not length.isdigit():
            raise MalformedResponseError("content-length is not a number")
        self._left = int(length)
        return _Framing.LENGTH

    def _line(self) -> bytes | None:
        line, found, rest = self._buffer.partition(b"\r\n")
        if not found:
            if len(self._buffer) > _MAX_HEAD:
                raise MalformedResponseError("a line of the response framing does not end")
            return None
        self._buffer = rest
        return line
