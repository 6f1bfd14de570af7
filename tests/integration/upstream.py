"""A small OpenAI-compatible server, well-behaved or not: the text of the last message says how it is to behave."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "sk-Very-Secret-Upstream-Key"
MODEL = "gpt-upstream"
CANARY = "canary-7f3a"


@dataclass
class Upstream:
    """What the server saw."""

    port: int = 0
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    closed_early: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    connections: set[tuple[str, int]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def chunk(text: str | None = None, *, finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish, "logprobs": None}
    return event({"id": "up-1", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice], **more})


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2}}
FINAL = event({"id": "up-1", "object": "chat.completion.chunk", "model": MODEL, "choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"


MISBEHAVIOUR: dict[str, Callable[[], Response]] = {
    "no-json": lambda: Response(f"<html>{CANARY}</html>", media_type="text/html"),
    "no-choices": lambda: JSONResponse({"id": "x"}),
    "list": lambda: JSONResponse([1]),
    "gzip": lambda: Response(gzip.compress(b"{}"), headers={"content-encoding": "gzip"}),
    "huge": lambda: Response(b" " * (33 * 1024 * 1024)),
    "error-in-200": lambda: JSONResponse({"error": {"message": KEY, "code": 429}}),
}

BAD_ENDS = {
    "cut": b"",
    "not-json": b"data: {oops " + CANARY.encode() + b"\n\n",
    "error-event": event({"error": {"message": f"{KEY} {CANARY}", "type": "server_error"}}) + DONE,
    "big-event": b"data: " + b"x" * 1_100_000,
}


def _refusal(status: str) -> Response:
    error = {"message": f"bad key {KEY} for {CANARY}", "code": "context_length_exceeded", "param": "messages"}
    headers = {"429": {"retry-after": "7"}, "302": {"location": "http://127.0.0.1:9/other"}}.get(status)
    return JSONResponse({"error": error}, int(status), headers=headers)


class _Handler:
    def __init__(self, seen: Upstream) -> None:
        self._seen = seen

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self._seen.requests.append((request.url.path, dict(request.headers), body))
        if request.client is not None:
            self._seen.connections.add((request.client.host, request.client.port))
        behaviour = body["messages"][-1]["content"] if "messages" in body else body.get("prompt", "ok")
        if body.get("stream"):
            return self._streamed(behaviour, body)
        return await self._plain(behaviour)

    async def _plain(self, behaviour: str) -> Response:
        if behaviour.isdigit():
            return _refusal(behaviour)
        if behaviour in MISBEHAVIOUR:
            return MISBEHAVIOUR[behaviour]()
        if behaviour == "stuck":
            await asyncio.sleep(30)
        self._seen.running += 1
        self._seen.most_running = max(self._seen.most_running, self._seen.running)
        await asyncio.sleep(0.02)
        self._seen.running -= 1
        message = {"role": "assistant", "content": "hello"}
        return JSONResponse(
            {
                "id": "up-1",
                "object": "chat.completion",
                "model": MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": USAGE,
            }
        )

    def _streamed(self, behaviour: str, body: dict[str, Any]) -> Response:
        if behaviour.isdigit():
            return JSONResponse({"error": {"message": KEY}}, int(behaviour))
        if behaviour == "not-a-stream":
            return JSONResponse({"choices": []})
        return StreamingResponse(self._events(behaviour, body), media_type="text/event-stream")

    async def _events(self, behaviour: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        try:
            async for data in self._script(behaviour, body):
                yield data
        except (asyncio.CancelledError, GeneratorExit):
            self._seen.closed_early.append(behaviour)
            raise

    async def _script(self, behaviour: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        if behaviour == "error-first":
            yield event({"error": {"message": KEY, "code": 429}})
            return
        for word in ("one ", "two ", "three"):
            yield chunk(word, usage=None) if behaviour == "null-usage" else chunk(word)
            await asyncio.sleep(0.01)
        while behaviour == "endless":
            yield chunk("more ")
            await asyncio.sleep(0.02)
        if behaviour == "broken":
            raise ConnectionResetError("broken on purpose")
        if behaviour in BAD_ENDS:
            yield BAD_ENDS[behaviour]
            return
        if behaviour == "usage-with-choices":
            yield chunk(finish="stop", usage=USAGE)
        else:
            yield chunk(finish="stop")
            if body.get("stream_options", {}).get("include_usage"):
                yield FINAL
        yield b"data: [DONE]" if behaviour == "bare-done" else DONE

    async def embeddings(self, request: Request) -> Response:
        body = await request.json()
        self._seen.requests.append((request.url.path, dict(request.headers), body))
        data = [{"object": "embedding", "index": 0, "embedding": [0.5] * 50_000}]
        return JSONResponse({"object": "list", "model": MODEL, "data": data, "usage": {"prompt_tokens": 4}})


@contextlib.contextmanager
def running_upstream() -> Iterator[Upstream]:
    """The server on a free loopback port, in a thread with a loop of its own."""
    seen = Upstream()
    handler = _Handler(seen)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", handler.chat, methods=["POST"]),
            Route("/v1/completions", handler.chat, methods=["POST"]),
            Route("/v1/embeddings", handler.embeddings, methods=["POST"]),
        ]
    )
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    seen.port = server.servers[0].sockets[0].getsockname()[1]
    yield seen
    server.should_exit = True
    thread.join(timeout=10)
