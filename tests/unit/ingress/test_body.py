from __future__ import annotations

import asyncio
import threading
import time

import pytest
from starlette.types import Message, Receive

from cluster.api.errors import ApiError
from cluster.config.ingress import LimitsConfig
from deployments.ingress.body import FREE_BYTES, SMALL_BYTES, BodyMemory, BodyReader, ClientGoneError
from tests.waiting import until

LIMITS = LimitsConfig(
    body_bytes=200_000,
    body_bytes_at_once=400_000,
    prompt_bytes=100_000,
    max_schema_bytes=1000,
    slow_client_timeout_s=0.3,
)


class Client:
    """Sends a body in pieces, as far as it is read."""

    def __init__(self, *pieces: int, ends: bool = True) -> None:
        self._pieces = list(pieces)
        self._ends = ends
        self.read = 0

    def receiver(self) -> Receive:
        async def receive() -> Message:
            if not self._pieces:
                await asyncio.Event().wait()
            size = self._pieces.pop(0)
            self.read += size
            return {"type": "http.request", "body": b"a" * size, "more_body": bool(self._pieces) or not self._ends}

        return receive


def scope(declared: int | None = None) -> dict:
    return {"headers": [] if declared is None else [(b"content-length", str(declared).encode())]}


async def refusal(reader: BodyReader, client: Client, declared: int | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await reader.read(scope(declared), client.receiver(), len)
    return caught.value


async def test_small_bodies_are_parsed_at_once_and_large_ones_on_a_thread() -> None:
    reader = BodyReader(LIMITS)
    here = threading.current_thread().name

    async def parsed_on(*pieces: int) -> str:
        return await reader.read(scope(), Client(*pieces).receiver(), lambda _: threading.current_thread().name)

    assert await parsed_on(0) == here
    assert await parsed_on(SMALL_BYTES) == here
    for pieces in ((SMALL_BYTES + 1,), (FREE_BYTES,), (FREE_BYTES, 100_000)):
        assert (await parsed_on(*pieces)).startswith("parse")


@pytest.mark.parametrize("pieces", [(10,), (10_000, 5), (FREE_BYTES, 1), (50_000, 50_000, 100_000)])
async def test_a_body_comes_whole(pieces: tuple[int, ...]) -> None:
    for declared in (sum(pieces), None):
        assert await BodyReader(LIMITS).read(scope(declared), Client(*pieces).receiver(), len) == sum(pieces)


async def test_nothing_is_read_past_the_limit() -> None:
    announced, growing = Client(100_000, 100_001), Client(*[50_000] * 100)
    assert (await refusal(BodyReader(LIMITS), announced, 200_001)).status == 413
    assert announced.read == 0
    assert (await refusal(BodyReader(LIMITS), growing)).status == 413
    assert growing.read == 250_000


async def test_a_large_body_waits_unread_until_there_is_memory() -> None:
    reader = BodyReader(LIMITS)
    clients = [Client(100_000, 50_000, ends=False) for _ in range(3)]
    tasks = [asyncio.ensure_future(reader.read(scope(200_000), client.receiver(), len)) for client in clients]
    # 200,000 bytes each: two have room, and the third is left where it was when it became large.
    await until(lambda: [client.read for client in clients] == [150_000, 150_000, 100_000])
    assert reader._memory.free == 0
    assert await reader.read(scope(), Client(FREE_BYTES).receiver(), len) == FREE_BYTES
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [error.status for error in outcomes if isinstance(error, ApiError)][:2] == [408, 408]
    assert isinstance(outcomes[2], ApiError)
    assert outcomes[2].status in (408, 503)
    assert reader._memory.free == LIMITS.body_bytes_at_once


async def test_who_waits_too_long_for_memory_is_told_to_come_back() -> None:
    reader = BodyReader(LIMITS)
    async with reader._memory.hold(350_000, 1.0):
        error = await refusal(reader, Client(100_000, 10), 100_010)
    assert (error.status, error.headers["retry-after"]) == (503, "1")
    assert reader._memory.free == LIMITS.body_bytes_at_once


async def test_a_slow_or_vanished_client_gives_its_memory_back() -> None:
    reader = BodyReader(LIMITS)
    assert (await refusal(reader, Client(100_000, ends=False))).status == 408

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGoneError):
        await reader.read(scope(), gone, len)
    task = asyncio.ensure_future(reader.read(scope(), Client(100_000, ends=False).receiver(), len))
    await until(lambda: reader._memory.free < LIMITS.body_bytes_at_once)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert reader._memory.free == LIMITS.body_bytes_at_once


async def test_memory_is_given_out_in_order_and_never_twice() -> None:
    memory = BodyMemory(10)
    order: list[int] = []

    async def take(name: int, size: int) -> None:
        async with memory.hold(size, 5.0):
            order.append(name)
            assert memory.free >= 0
            await asyncio.sleep(0.01)

    tasks = [asyncio.ensure_future(take(name, size)) for name, size in enumerate((6, 6, 1, 9, 4, 10, 2))]
    await asyncio.sleep(0)
    # Two leave the line: one that waits, one whose turn comes while it leaves.
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 1, 2, 4, 5, 6]
    assert memory.free == 10
    for _ in range(20):
        holder = asyncio.ensure_future(take(0, 10))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(take(1, 10))
        await asyncio.sleep(0)
        await holder
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert memory.free == 10


async def test_the_loop_turns_while_a_large_body_is_parsed() -> None:
    def parse(data: bytes) -> int:
        ends = time.monotonic() + 0.2
        while time.monotonic() < ends:
            sum(range(100))
        return len(data)

    turns = 0
    task = asyncio.ensure_future(BodyReader(LIMITS).read(scope(), Client(100_000).receiver(), parse))
    while not task.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert await task == 100_000
    assert turns > 8
