"""A stand-in for a cluster whose model has pools: answers completions, and tells how its pools stand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtests.targets import Target, parse_target
from tests.unit.loadtests.burst.made import pool


@dataclass
class Behaviour:
    """What it does with each request."""

    takes_s: float = 0.0
    silent: bool = False
    """Whether completions are never answered."""
    status: int = 200
    bodies: list[dict[str, Any]] = field(default_factory=list)


@asynccontextmanager
async def serving(behaviour: Behaviour) -> AsyncIterator[Target]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await _answer(reader, writer, behaviour)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield parse_target(f"http://127.0.0.1:{port}")
    finally:
        server.close()
        await asyncio.sleep(0)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, behaviour: Behaviour) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0)
    path, status = head.split(" ", 2)[1], 200
    told: dict[str, Any]
    if path.endswith("/completions"):
        behaviour.bodies.append(json.loads(await reader.readexactly(length)))
        await asyncio.sleep(3600 if behaviour.silent else behaviour.takes_s)
        told, status = _completion(behaviour), behaviour.status
    else:
        told = _experts() if path.endswith("/experts") else _precision()
    body = json.dumps(told).encode()
    writer.write(f"HTTP/1.1 {status} OK\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


def _completion(behaviour: Behaviour) -> dict[str, Any]:
    if behaviour.status != 200:
        return {"error": {"code": "saturated"}}
    return {
        "model": "sparse",
        "choices": [{"finish_reason": "length"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": behaviour.bodies[-1]["max_tokens"]},
    }


def _experts() -> dict[str, Any]:
    pools = [asdict(pool("0", 2, 60.0)), asdict(pool("1", 1, 10.0))]
    view = {"version": 1, "layers": 30, "experts": 4, "memory_bytes": 9, "pools": pools, "age_s": 0.0}
    return {"models": {"sparse": {"shape": {"layers": 30, "experts": 4, "top_k": 2}, "pools": view}}}


def _precision() -> dict[str, Any]:
    return {"models": {"sparse": {"replicas": [{"running": 1, "waiting": 0}]}}}
