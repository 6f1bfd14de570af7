"""The bounds of the HTTP protocol, on a real socket with a trivial application behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Receive, Scope, Send

from cluster.api.errors import ApiError
from cluster.config.ingress import IngressConfig, LimitsConfig
from deployments.ingress.body import BodyReader, ClientGoneError
from deployments.ingress.exchange import Exchange
from deployments.ingress.server import IngressServer

PLAIN = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LIMITS = LimitsConfig(header_bytes=2048, slow_client_timeout_s=0.5)


@asynccontextmanager
async def serving(port: int, seen: list[Scope], read: bool = True, size: int = 2) -> AsyncIterator[None]:
    bodies = BodyReader(LIMITS)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        exchange = Exchange(scope, receive, send, LIMITS.slow_client_timeout_s)
        try:
            if read:
                await bodies.read(scope, receive, len)
                exchange.body_read = True
            await exchange.respond(200, b"x" * size)
        except ApiError as error:
            await exchange.refuse(error)
        except ClientGoneError:
            return

    server = IngressServer(app, IngressConfig(port=port, limits=LIMITS))
    await server.start()
    await asyncio.sleep(0.1)
    try:
        yield
    finally:
        await asyncio.wait_for(server.stop(), 5)


@asynccontextmanager
async def connected(port: int, limit: int = 65536) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_before_it_stops_answers_end_their_connections(free_port: int) -> None:
    server = IngressServer(answer_all, IngressConfig(port=free_port, limits=LIMITS))
    await server.start()
    await asyncio.sleep(0.1)
    async with connected(free_port) as (reader, writer):
        writer.write(PLAIN)
        assert b"connection" not in await asyncio.wait_for(reader.readuntil(b"\r\n\r\nxx"), 5)
        stopping = asyncio.create_task(server.stop(3.0))
        # uvicorn looks at its headers once a second.
        await asyncio.sleep(1.5)
        writer.write(PLAIN)
        answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer
    # Others are still let in.
    assert (await exchange(free_port, PLAIN)).startswith(b"HTTP/1.1 200")
    assert not stopping.done()
    await asyncio.wait_for(stopping, 10)
    with pytest.raises(ConnectionRefusedError):
        await exchange(free_port, PLAIN)


async def answer_all(scope: Scope, receive: Receive, send: Send) -> None:
    await Exchange(scope, receive, send, LIMITS.slow_client_timeout_s).respond(200, b"xx")


async def exchange(port: int, data: bytes) -> bytes:
    async with connected(port) as (reader, writer):
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 5)


async def test_what_is_refused_before_it_is_a_request_has_a_code_and_an_id(free_port: int) -> None:
    half = b"GET / HTTP/1.1\r\nhost: x\r\n"
    async with serving(free_port, []):
        for data, status, code in (
            (b"no HTTP at all\r\n\r\n", 400, "invalid_http"),
            (half + b"x: " + b"y" * 3000, 431, "headers_too_large"),
            (half, 408, "request_timeout"),
        ):
            head, _, body = (await exchange(free_port, data)).partition(b"\r\n\r\n")
            first, *headers = head.decode().split("\r\n")
            assert first.split()[1] == str(status)
            error = json.loads(body)["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", code)
            given = dict(header.split(": ", 1) for header in headers)
            assert re.fullmatch("[0-9a-f]{32}", given["x-request-id"])


async def test_pipelined_requests_are_not_queued(free_port: int) -> None:
    seen: list[Scope] = []
    async with serving(free_port, seen):
        answer = await exchange(free_port, PLAIN * 1000)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert len(seen) == 1


async def test_trailers_are_no_headers(free_port: int) -> None:
    seen: list[Scope] = []
    chunked = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    async with serving(free_port, seen):
        answer = await exchange(free_port, chunked + b"authorization: Bearer stolen\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"authorization" not in dict(seen[0]["headers"])


async def test_endless_trailers_end_the_connection(free_port: int) -> None:
    async with serving(free_port, []), connected(free_port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        for number in range(64):
            writer.write(b"t%d: %s\r\n" % (number, b"y" * 1000))
            await asyncio.sleep(0.005)
            if reader.at_eof():
                break
        answer = await asyncio.wait_for(reader.read(), 5)
    # They are read no more, so the body never ends, and the connection does.
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer


async def test_an_unread_body_ends_the_connection(free_port: int) -> None:
    async with serving(free_port, [], read=False):
        answer = await exchange(free_port, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    assert b"connection: close" in answer


async def test_a_peer_that_reads_nothing_is_cut(free_port: int) -> None:
    async with serving(free_port, [], size=32 * 1024 * 1024), connected(free_port, limit=1024) as (reader, writer):
        writer.write(PLAIN)
        await asyncio.sleep(3.0)
        received = 0
        try:
            while piece := await asyncio.wait_for(reader.read(1 << 20), 5):
                received += len(piece)
        except ConnectionError:
            pass
        assert received < 32 * 1024 * 1024
