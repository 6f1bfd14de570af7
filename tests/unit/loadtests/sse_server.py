"""A small OpenAI-compatible server for tests: streams a given number of tokens, or misbehaves as asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Behaviour:
    """What the server does with each request."""

    gap_s: float = 0.0
    per_read: int = 1
    status: int = 200
    stop_after: int | None = None
    """Close the connection after this many tokens."""
    error_event_after: int | None = None
    finish: bool = True
    bodies: list[dict[str, object]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)


def event(payload: object) -> bytes:
    return b"data: " + (payload if isinstance(payload, bytes) else json.dumps(payload).encode()) + b"\n\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@asynccontextmanager
async def serving(behaviour: Behaviour) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _answer(reader, writer, behaviour):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
        await asyncio.sleep(0)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, behaviour: Behaviour) -> bool:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next((int(x.split(":")[1]) for x in head.split("\r\n") if x.lower().startswith("content-length")), 0)
    body = json.loads(await reader.readexactly(length))
    behaviour.bodies.append(body)
    behaviour.headers.append(head)
    if behaviour.status != 200:
        answer = json.dumps({"error": {"message": "no"}}).encode()
        writer.write(f"HTTP/1.1 {behaviour.status} No\r\ncontent-length: {len(answer)}\r\n\r\n".encode() + answer)
        await writer.drain()
        return True
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    writer.write(chunk(event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})))
    tokens = int(body["max_tokens"])
    pending = b""
    for number in range(tokens):
        if number == behaviour.stop_after:
            return False
        if number == behaviour.error_event_after:
            writer.write(chunk(event({"error": {"message": "broken"}})) + b"0\r\n\r\n")
            return True
        pending += chunk(event({"choices": [{"delta": {"content": f" t{number}"}}]}))
        if (number + 1) % behaviour.per_read == 0:
            await asyncio.sleep(behaviour.gap_s)
            writer.write(pending)
            await writer.drain()
            pending = b""
    writer.write(pending + chunk(event({"choices": [{"delta": {}, "finish_reason": "length"}]})))
    usage = {"prompt_tokens": 7, "completion_tokens": tokens}
    writer.write(chunk(event({"choices": [], "usage": usage})))
    if behaviour.finish:
        writer.write(chunk(event(b"[DONE]")))
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True
