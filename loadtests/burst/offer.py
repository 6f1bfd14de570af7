"""Sends the requests of a run, and what became of each."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from loadtests.burst.load import Kind, Request
from loadtests.client import Connection, Exchange
from loadtests.http1 import encode_request
from loadtests.targets import Target

TIMEOUT_S: Final = 180.0
"""Longer than the cluster lets a request take: what ends here hangs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. Times are seconds."""

    number: int
    kind: Kind
    at_s: float
    """When it was due, after the run's beginning."""
    total_s: float
    """From then to the last byte of the answer; a client that is late does not make the server look faster."""
    status: int
    problem: str | None
    """Why there is no whole answer; None: there is one."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    """Who answered, as the answer says."""
    wait_s: float = 0.0
    """That the engine's steps which it had part in waited for pools."""
    resent_rows: int = 0
    degraded_rows: int = 0

    @property
    def rows(self) -> int:
        """Tokens that were computed: the last one is never read."""
        return max(0, self.prompt_tokens + self.completion_tokens - 1)

    @property
    def ended_s(self) -> float:
        """After the run's beginning."""
        return self.at_s + self.total_s


def encode(target: Target, body: dict[str, object]) -> bytes:
    """The request as it goes over the wire."""
    headers = [("content-type", "application/json")]
    if target.key is not None:
        headers.append(("authorization", f"Bearer {target.key}"))
    payload = json.dumps(body, separators=(",", ":")).encode()
    return encode_request("POST", f"{target.prefix}/completions", target.authority, tuple(headers), payload)


async def offer(target: Target, model: str, requests: Sequence[Request], began: float) -> list[Outcome]:
    """Send every request at its time after `began`, whatever became of those before, and wait for all."""
    connections = _Connections(target)

    async def one(request: Request) -> tuple[Request, Exchange]:
        data = encode(target, request.body(model))
        await asyncio.sleep(max(0.0, began + request.at_s - time.perf_counter()))
        return request, await connections.send(data)

    try:
        ended = await asyncio.gather(*(one(request) for request in requests))
    finally:
        connections.close()
    await asyncio.sleep(0)
    return [outcome_of(request, exchange, began + request.at_s, request.at_s) for request, exchange in ended]


async def saturate(
    target: Target, model: str, requests: Sequence[Request], streams: int, seconds: float
) -> list[Outcome]:
    """Keep so many requests under way for a time, and wait for the last ones; `at_s` is when each was sent."""
    connections = _Connections(target)
    waiting = iter(requests)
    began = time.perf_counter()
    found: list[Outcome] = []

    async def stream() -> None:
        for request in waiting:
            sent = time.perf_counter()
            if sent - began >= seconds:
                return
            exchange = await connections.send(encode(target, request.body(model)))
            found.append(outcome_of(request, exchange, sent, sent - began))
            if found[-1].problem is not None:
                return

    try:
        await asyncio.gather(*(stream() for _ in range(streams)))
    finally:
        connections.close()
    await asyncio.sleep(0)
    return found


class SteadyOffer:
    """Sends `per_s` requests a second from entry to exit, as `made` makes them; the exit waits for those under way."""

    def __init__(
        self, target: Target, model: str, per_s: float, timeout_s: float, made: Callable[[int, float], Request]
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._target, self._model, self._made = target, model, made
        self._pause_s, self._timeout_s = 1 / per_s, timeout_s
        self._connections = _Connections(target)
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._began = time.perf_counter()
        self._pacer = asyncio.create_task(self._pace())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._pacer.cancel()
        await asyncio.gather(self._pacer, *self._running, return_exceptions=True)
        self._connections.close()
        await asyncio.sleep(0)

    async def _pace(self) -> None:
        number = 0
        while True:
            at_s = number * self._pause_s
            await asyncio.sleep(max(0.0, self._began + at_s - time.perf_counter()))
            task = asyncio.create_task(self._one(self._made(number, at_s)))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            number += 1

    async def _one(self, request: Request) -> None:
        exchange = await self._connections.send(encode(self._target, request.body(self._model)), self._timeout_s)
        self.outcomes.append(outcome_of(request, exchange, self._began + request.at_s, request.at_s))


def outcome_of(request: Request, exchange: Exchange, due: float, at_s: float) -> Outcome:
    """What became of a request that was due then, on the clock of the exchange."""
    total_s = exchange.ended - due
    if exchange.failure is not None:
        return Outcome(request.number, request.kind, at_s, total_s, exchange.status, str(exchange.failure))
    told = _object(b"".join(data for _, data in exchange.arrivals))
    if exchange.status != 200:
        error = told.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        return Outcome(request.number, request.kind, at_s, total_s, exchange.status, str(code or exchange.status))
    usage, choices = told.get("usage") or {}, told.get("choices") or [{}]
    pools = ((told.get("pointsman") or {}).get("experts") or {}).get("pools") or {}
    whole = choices[0].get("finish_reason") in {"stop", "length"}
    return Outcome(
        number=request.number,
        kind=request.kind,
        at_s=at_s,
        total_s=total_s,
        status=exchange.status,
        problem=None if whole else "not whole",
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        model=str(told.get("model") or ""),
        wait_s=float(pools.get("wait_s") or 0.0),
        resent_rows=int(pools.get("resent_rows") or 0),
        degraded_rows=int(pools.get("degraded_rows") or 0),
    )


class _Connections:
    """Opened as they are needed, and used again."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._free: list[Connection] = []
        self._all: list[Connection] = []

    async def send(self, data: bytes, timeout_s: float = TIMEOUT_S) -> Exchange:
        if not self._free:
            self._free.append(Connection(self._target))
            self._all.append(self._free[-1])
        connection = self._free.pop()
        try:
            return await connection.send(data, timeout_s)
        finally:
            self._free.append(connection)

    def close(self) -> None:
        for connection in self._all:
            connection.close()


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
