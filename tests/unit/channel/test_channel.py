"""Both ends of the channel, over a real loopback connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import pytest
import uvloop

from deployments.channel import receiver, sender
from deployments.channel.messages import (
    Accepted,
    Ended,
    Events,
    Hello,
    Leaving,
    Message,
    Stats,
    encode_frame,
    read_frame,
)
from deployments.channel.receiver import ChannelReceiver
from deployments.channel.sender import IngressAddress, IngressConnection, connect
from deployments.channel.stream import ReplicaLostError, SlowReaderError, TokenStream
from deployments.engines.protocol import EngineReply, EngineStats
from tests.waiting import until


@dataclass
class Ends:
    """An ingress and a replica that talk to each other."""

    ingress: ChannelReceiver
    address: IngressAddress
    replica: IngressConnection
    cancelled: list[str] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)

    def open(self, name: str, max_bytes: int = 1000) -> TokenStream:
        stream = TokenStream(name, max_bytes)
        self.ingress.open_stream(stream, "dense")
        return stream


def hello(address: IngressAddress, replica_id: str = "r1") -> Hello:
    return Hello(address.secret, replica_id, "dense", "simulated", 1, (2, 3))


@pytest.fixture(autouse=True)
async def settled() -> AsyncIterator[None]:
    yield
    # Connections close over the next turns of the loop; one that is still open when the loop ends is a warning.
    await asyncio.sleep(0.01)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ingress = ChannelReceiver("i1")
    address = await ingress.start("127.0.0.1")
    cancelled: list[str] = []
    closed: list[bool] = []
    replica = await connect(address, hello(address), cancelled.append, lambda: closed.append(True))
    await until(lambda: ingress.is_attached("r1"))
    yield Ends(ingress, address, replica, cancelled, closed)
    await replica.close()
    await ingress.close()
    await until(lambda: not ingress.attached())


@pytest.mark.parametrize("leaves", [True, False])
async def test_what_no_replica_took_comes_back_when_the_last_one_goes(ends: Ends, leaves: bool) -> None:
    taken, untaken = ends.open("taken"), ends.open("untaken")
    other = TokenStream("other", 1000)
    ends.ingress.open_stream(other, "sparse")
    second = await connect(ends.address, hello(ends.address, "r2"), lambda _: None, lambda: None)
    await until(lambda: ends.ingress.is_attached("r2"))
    ends.replica.send(Accepted("taken"))
    await until(lambda: taken.replica is not None)
    await second.close()
    await until(lambda: not ends.ingress.is_attached("r2"))
    assert not untaken.ended, "one replica of the model is left"
    if leaves:
        ends.replica.send(Leaving("it ends"))
    else:
        await ends.replica.close()
    with pytest.raises(ReplicaLostError):
        await asyncio.wait_for(untaken.next(), 2.0)
    assert taken.ended is not leaves, "who leaves finishes what it took"
    assert not other.ended, "another model's"


def loaded(ends: Ends) -> int | None:
    """Requests that the replica has, as far as the ingress knows."""
    told = ends.ingress.told("r1")
    return None if told is None else told.load


async def test_an_answer_from_end_to_end(ends: Ends) -> None:
    stream = ends.open("s1")
    for message in (Accepted("s1"), Events("s1", b"a"), Events("s1", b"b"), Ended("s1", EngineReply(200))):
        ends.replica.send(message)
    assert await stream.next() == b"ab"
    assert await stream.next() is None
    assert stream.replica is not None
    assert stream.replica.hello.engine_pids == (2, 3)
    assert loaded(ends) == 0


async def test_messages_of_one_turn_of_the_loop_leave_in_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[list[Message]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                frames.append(await read_frame(reader))
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = IngressAddress("i", "127.0.0.1", server.sockets[0].getsockname()[1], "secret")
    replica = await connect(address, hello(address), lambda _: None, lambda: None)
    await until(lambda: frames)
    # An engine step: one callback wakes the tasks of all streams, and each sends on its own.
    step = asyncio.Event()

    async def stream(name: str) -> None:
        await step.wait()
        replica.send(Events(name, b"token"))

    tasks = [asyncio.create_task(stream(f"s{number}")) for number in range(16)]
    await asyncio.sleep(0)
    step.set()
    await asyncio.gather(*tasks)
    await until(lambda: len(frames) > 1)
    assert [len(frame) for frame in frames] == [1, 16]
    await replica.close()
    server.close()


@pytest.mark.parametrize("secret", ["wrong", "", "nö"])
async def test_a_wrong_secret_is_not_let_in(ends: Ends, secret: str) -> None:
    closed: list[bool] = []
    stranger = replace(ends.address, secret=secret)
    await connect(stranger, hello(stranger, "stranger"), lambda _: None, lambda: closed.append(True))
    await until(lambda: closed)
    assert not ends.ingress.is_attached("stranger")
    assert ends.ingress.is_attached("r1")


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        encode_frame([]),
        encode_frame([Accepted("s1")]),
        (65 * 1024).to_bytes(4, "big"),
        b"\x00\x00\x00\x02\xc1\xc1",
    ],
)
async def test_whoever_does_not_introduce_itself_is_cut_off(ends: Ends, noise: bytes) -> None:
    reader, writer = await asyncio.open_connection(ends.address.host, ends.address.port)
    writer.write(noise)
    async with asyncio.timeout(2):
        assert await reader.read() == b""
    writer.close()
    assert [replica.hello.replica_id for replica in ends.ingress.attached()] == ["r1"]


async def test_silence_instead_of_an_introduction_is_cut_off(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "HELLO_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_connection(ends.address.host, ends.address.port)
    async with asyncio.timeout(2):
        assert await reader.read() == b""
    writer.close()


async def test_a_lost_replica_fails_its_streams_at_once(ends: Ends) -> None:
    changes: list[bool] = []
    ends.ingress._on_lost = lambda _: changes.append(True)
    mine, other = ends.open("s1"), TokenStream("s2", 1000)
    ends.ingress.open_stream(other, "sparse")
    ends.replica.send(Accepted("s1"))
    ends.replica.send(Events("s1", b"a"))
    assert await mine.next() == b"a"
    ends.replica._writer.transport.abort()
    with pytest.raises(ReplicaLostError, match="r1"):
        await mine.next()
    assert not other.ended
    assert not ends.ingress.is_attached("r1")
    assert ends.ingress.replicas("dense") == ()
    assert changes
    assert ends.closed


async def test_a_caller_who_leaves_cancels_the_request(ends: Ends) -> None:
    stream = ends.open("s1")
    ends.replica.send(Accepted("s1"))
    await until(lambda: stream.replica)
    assert loaded(ends) == 1
    ends.ingress.close_stream(stream)
    await until(lambda: ends.cancelled == ["s1"])
    ends.replica.send(Events("s1", b"late"))
    ends.replica.send(Ended("s1", EngineReply(499)))
    await asyncio.sleep(0.02)
    assert not stream.ended
    assert loaded(ends) == 0


async def test_a_caller_who_leaves_before_a_replica_took_the_request(ends: Ends) -> None:
    stream = ends.open("s1")
    ends.ingress.close_stream(stream)
    ends.replica.send(Accepted("s1"))
    await until(lambda: ends.cancelled == ["s1"])
    assert stream.replica is None


async def test_a_finished_request_is_not_cancelled(ends: Ends) -> None:
    stream = ends.open("s1")
    ends.replica.send(Accepted("s1"))
    ends.replica.send(Ended("s1", EngineReply(200)))
    assert await stream.next() is None
    ends.ingress.close_stream(stream)
    await asyncio.sleep(0.02)
    assert ends.cancelled == []


async def test_a_slow_reader_ends_its_own_stream_alone(ends: Ends) -> None:
    slow, quick = ends.open("slow", max_bytes=10), ends.open("quick", max_bytes=1000)
    for name in ("slow", "quick"):
        ends.replica.send(Accepted(name))
    for _ in range(3):
        ends.replica.send(Events("slow", b"123456"))
        ends.replica.send(Events("quick", b"123456"))
    assert await quick.next() == b"123456" * 3
    assert await slow.next() == b"123456"
    with pytest.raises(SlowReaderError):
        await slow.next()
    ends.ingress.close_stream(slow)
    await until(lambda: ends.cancelled == ["slow"])


@pytest.mark.parametrize(("bound", "value"), [("MAX_UNSENT_S", 0.1), ("UNSENT_CEILING_BYTES", 20_000_000)])
async def test_an_ingress_that_reads_nothing_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, bound: str, value: float
) -> None:
    monkeypatch.setattr(sender, "MAX_UNSENT_BYTES", 100_000)
    monkeypatch.setattr(sender, bound, value)
    closed: list[bool] = []

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await until(lambda: closed)
        writer.close()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0, limit=1024)
    address = IngressAddress("i", "127.0.0.1", server.sockets[0].getsockname()[1], "secret")
    replica = await connect(address, hello(address), lambda _: None, lambda: closed.append(True))
    async with asyncio.timeout(5):
        while replica.open:
            replica.send(Events("s", b"x" * 500_000))
            await asyncio.sleep(0.001)
    await until(lambda: closed)
    server.close()


async def test_a_replica_that_leaves_or_falls_silent_gets_no_requests(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ends.ingress.told("r1") is not None
    monkeypatch.setattr(receiver, "SILENCE_LIMIT_S", 0.05)
    await until(lambda: ends.ingress.told("r1") is None)
    assert ends.ingress.is_attached("r1")
    ends.replica.send(Stats(EngineStats(running=3, waiting=2)))
    await until(lambda: ends.ingress.told("r1") is not None)
    assert loaded(ends) == 5
    monkeypatch.setattr(receiver, "SILENCE_LIMIT_S", 60.0)
    ends.replica.send(Leaving("draining"))
    await until(lambda: ends.ingress.told("r1") is None)
    assert ends.ingress.attached()[0].leaving == "draining"


async def test_stats_are_sent_on_change_and_as_a_sign_of_life(ends: Ends) -> None:
    sent: list[Message] = []
    ends.replica.send = sent.append  # type: ignore[method-assign]
    idle, busy = EngineStats(), EngineStats(running=1)
    for at, stats in ((10.0, idle), (10.2, idle), (10.4, busy), (10.6, busy), (11.5, busy)):
        ends.replica.send_stats(Stats(stats), at, 1.0)
    assert sent == [Stats(idle), Stats(busy), Stats(busy)]


async def test_a_replica_that_comes_back_replaces_its_old_connection(ends: Ends) -> None:
    stream = ends.open("s1")
    ends.replica.send(Accepted("s1"))
    await until(lambda: stream.replica)
    again = await connect(ends.address, hello(ends.address), lambda _: None, lambda: None)
    await until(lambda: ends.ingress.attached()[0] is not stream.replica)
    await ends.replica.close()
    with pytest.raises(ReplicaLostError):
        await stream.next()
    assert ends.ingress.told("r1") is not None
    await again.close()


async def test_a_silent_replica_is_given_up_and_its_streams_fail(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "SWEEP_S", 0.02)
    monkeypatch.setattr(receiver, "LOST_AFTER_S", 0.2)
    silent = ChannelReceiver("silent")
    address = await silent.start("127.0.0.1")
    hello = Hello(address.secret, "mute", "dense", "simulated", 1, ())
    connection = await connect(address, hello, lambda _: None, lambda: None)
    stream = TokenStream("s", 1000)
    silent.open_stream(stream, "dense")
    connection.send(Accepted("s"))
    with pytest.raises(ReplicaLostError):
        await asyncio.wait_for(stream.next(), 5)
    assert not silent.is_attached("mute")
    await connection.close()
    await silent.close()


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_cut_connection_is_seen_though_the_loop_turns_no_more(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Serve runs replicas on uvloop, whose sockets can do less."""
    listener = socket.create_server(("127.0.0.1", 0))

    async def cut() -> None:
        address = IngressAddress("i1", "127.0.0.1", listener.getsockname()[1], "secret")
        connection = await connect(address, hello(address), lambda _stream: None, lambda: None)
        await asyncio.sleep(0.01)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(5.0)
            connection.cut()
            # From here on the loop is not given a turn: what is read is what the kernel was told.
            while peer.recv(65_536):
                pass
        await connection.close()
        connection.cut()

    loop = make_loop()
    try:
        loop.run_until_complete(cut())
    finally:
        loop.close()
        listener.close()
