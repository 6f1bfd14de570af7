from __future__ import annotations

import asyncio

import pytest

from deployments.channel.stream import ReplicaLostError, SlowReaderError, TokenStream
from deployments.engines.protocol import EngineReply

DONE = EngineReply(200)


async def test_events_that_wait_come_in_one_piece() -> None:
    stream = TokenStream("s", 100)
    stream.feed(b"a")
    stream.feed(b"b")
    assert await stream.next() == b"ab"
    stream.feed(b"c")
    stream.finish(DONE)
    assert await stream.next() == b"c"
    assert await stream.next() is None
    assert stream.reply == DONE


async def test_a_reader_that_waits_is_woken() -> None:
    stream = TokenStream("s", 100)
    reading = asyncio.create_task(stream.next())
    await asyncio.sleep(0)
    stream.feed(b"a")
    assert await reading == b"a"


async def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    stream = TokenStream("s", 100)
    reading = asyncio.create_task(stream.next())
    await asyncio.sleep(0)
    reading.cancel()
    stream.feed(b"a")
    assert await stream.next() == b"a"


async def test_a_slow_reader_gets_what_fits_and_then_an_error() -> None:
    stream = TokenStream("s", 10)
    stream.feed(b"x" * 10)
    stream.feed(b"y")
    stream.feed(b"z")
    assert await stream.next() == b"x" * 10
    with pytest.raises(SlowReaderError):
        await stream.next()


async def test_only_what_waits_counts_against_the_limit() -> None:
    stream = TokenStream("s", 10)
    for _ in range(100):
        stream.feed(b"x" * 10)
        assert await stream.next() == b"x" * 10


async def test_a_lost_replica_fails_the_stream_after_what_came() -> None:
    stream = TokenStream("s", 10)
    stream.feed(b"x")
    stream.fail(ReplicaLostError("r1"))
    stream.feed(b"late")
    assert await stream.next() == b"x"
    with pytest.raises(ReplicaLostError, match="r1"):
        await stream.next()


async def test_a_finished_stream_does_not_fail_any_more() -> None:
    stream = TokenStream("s", 10)
    stream.finish(DONE)
    stream.fail(ReplicaLostError("r1"))
    assert await stream.next() is None
