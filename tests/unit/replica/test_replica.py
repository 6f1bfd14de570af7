"""A replica with a fake engine, attached to a real ingress end of the channel."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from deployments.channel.receiver import ChannelReceiver
from deployments.channel.sender import IngressAddress
from deployments.channel.stream import ReplicaLostError, TokenStream
from deployments.engines.expert_routing import NoExpertLoad
from deployments.engines.kv_precision import FixedKvPrecision
from deployments.engines.protocol import (
    Emit,
    Endpoint,
    EngineDeadError,
    EngineReply,
    EngineRequest,
    EngineStartError,
    EngineStats,
    TokenUsage,
)
from deployments.replica.replica import EXIT_ENGINE_LOST, MAX_REPLY_BYTES, Replica
from deployments.replica.spec import ReplicaCall
from deployments.replica.tracing import ReplicaTracer
from deployments.replica.watcher import WatchLimits
from tests.waiting import until


@dataclass
class FakeEngine(FixedKvPrecision, NoExpertLoad):
    """Answers by the body's `do`."""

    kind: str = "simulated"
    running: set[str] = field(default_factory=set)
    cancelled: list[str] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    dead: bool = False
    closed: bool = False
    beats: int = 0

    async def start(self) -> None:
        return

    async def run(self, request: EngineRequest, emit: Emit) -> EngineReply:
        self.running.add(request.request_id)
        try:
            return await self._do(str(request.body["do"]), request, emit)
        except asyncio.CancelledError:
            self.cancelled.append(request.request_id)
            raise
        finally:
            self.running.discard(request.request_id)

    async def _do(self, what: str, request: EngineRequest, emit: Emit) -> EngineReply:
        if what == "crash":
            raise ValueError("secret words of the caller")
        if what == "die":
            raise EngineDeadError("the core is gone")
        if what == "large":
            return EngineReply(200, b"x" * (MAX_REPLY_BYTES + 1), TokenUsage(3, 2))
        if what == "trace":
            return EngineReply(200, request.trace_headers.get("traceparent", "none").encode())
        emit(b"data: 1\n\n")
        if what == "wait":
            await self.release.wait()
        emit(b"data: 2\n\n")
        return EngineReply(200, usage=TokenUsage(3, 2))

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.running))

    async def heartbeat(self) -> None:
        self.beats += 1
        if self.dead:
            raise EngineDeadError("the core is gone")

    def pids(self) -> tuple[int, ...]:
        return ()

    async def close(self) -> None:
        self.closed = True


@dataclass
class Setting:
    engine: FakeEngine
    replica: Replica
    ingress: ChannelReceiver
    address: IngressAddress
    given_up: list[str]
    calls: list[asyncio.Task[None]] = field(default_factory=list)

    def send(self, do: str, name: str = "s1") -> TokenStream:
        stream = TokenStream(name, 10_000)
        self.ingress.open_stream(stream, "dense")
        request = EngineRequest(name, Endpoint.CHAT, {"do": do})
        self.calls.append(asyncio.create_task(self.replica.serve(ReplicaCall(name, self.address, request))))
        return stream


async def read(stream: TokenStream) -> bytes:
    found = b""
    while (data := await stream.next()) is not None:
        found += data
    return found


@pytest.fixture
async def setting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    engine = FakeEngine()
    replica = Replica("dense", "r1", engine, ReplicaTracer("dense", "simulated"), WatchLimits(period_s=0.01))
    given_up: list[str] = []
    monkeypatch.setattr(replica, "_give_up", given_up.append)
    ingress = ChannelReceiver("i1")
    address = await ingress.start("127.0.0.1")
    await replica.start()
    yield Setting(engine, replica, ingress, address, given_up)
    engine.release.set()
    await replica.drain()
    await ingress.close()
    await until(lambda: not ingress.attached())
    await asyncio.sleep(0.02)


async def test_a_call_is_served_over_the_channel(setting: Setting) -> None:
    stream = setting.send("answer")
    assert await read(stream) == b"data: 1\n\ndata: 2\n\n"
    assert stream.reply == EngineReply(200, usage=TokenUsage(3, 2))
    await asyncio.gather(*setting.calls)
    assert stream.replica is not None
    assert stream.replica.hello.model == "dense"
    assert setting.ingress.told("r1") is not None


async def test_an_answer_that_is_too_large_is_refused_and_still_counted(setting: Setting) -> None:
    stream, other = setting.send("large"), setting.send("wait", "s2")
    assert await read(stream) == b""
    assert stream.reply is not None
    assert (stream.reply.status, stream.reply.usage) == (400, TokenUsage(3, 2))
    assert b"answer_too_large" in stream.reply.body
    setting.engine.release.set()
    assert await read(other) == b"data: 1\n\ndata: 2\n\n"


async def test_attaching_twice_opens_one_connection(setting: Setting) -> None:
    await asyncio.gather(*(setting.replica.attach(setting.address) for _ in range(5)))
    await until(setting.ingress.attached)
    first = setting.ingress.attached()[0]
    await setting.replica.attach(setting.address)
    assert setting.ingress.attached() == (first,)


async def test_a_caller_who_leaves_cancels_the_engines_work(setting: Setting) -> None:
    stream = setting.send("wait")
    assert await stream.next() == b"data: 1\n\n"
    setting.ingress.close_stream(stream)
    await until(lambda: setting.engine.cancelled == ["s1"], timeout_s=1.0)
    await asyncio.gather(*setting.calls)
    beats = setting.engine.beats
    await until(lambda: setting.engine.beats > beats or beats > 0)
    assert setting.engine.running == set()


async def test_a_caller_who_left_before_the_call_came_cancels_it(setting: Setting) -> None:
    stream = setting.send("wait")
    setting.ingress.close_stream(stream)
    await until(lambda: setting.engine.cancelled == ["s1"], timeout_s=1.0)


async def test_serve_that_cancels_the_call_cancels_the_engines_work(setting: Setting) -> None:
    stream = setting.send("wait")
    assert await stream.next() == b"data: 1\n\n"
    setting.calls[0].cancel()
    await until(lambda: setting.engine.cancelled == ["s1"], timeout_s=1.0)
    assert await stream.next() is None
    assert stream.reply is not None
    assert stream.reply.status == 499


async def test_an_ingress_that_goes_cancels_what_it_asked_for_and_nothing_else(setting: Setting) -> None:
    other = ChannelReceiver("i2")
    address = await other.start("127.0.0.1")
    mine = setting.send("wait", "mine")
    theirs = TokenStream("theirs", 1000)
    other.open_stream(theirs, "dense")
    request = EngineRequest("theirs", Endpoint.CHAT, {"do": "wait"})
    call = asyncio.create_task(setting.replica.serve(ReplicaCall("theirs", address, request)))
    assert await theirs.next() == b"data: 1\n\n"
    assert await mine.next() == b"data: 1\n\n"
    await other.close()
    await until(lambda: setting.engine.cancelled == ["theirs"], timeout_s=1.0)
    await call
    setting.engine.release.set()
    assert await read(mine) == b"data: 2\n\n"


async def test_draining_finishes_what_runs_and_takes_the_replica_out_of_routing(setting: Setting) -> None:
    stream = setting.send("wait")
    assert await stream.next() == b"data: 1\n\n"
    drain = asyncio.create_task(setting.replica.drain())
    await until(lambda: setting.ingress.told("r1") is None)
    assert setting.ingress.is_attached("r1")
    await asyncio.sleep(0.1)
    assert not drain.done()
    setting.engine.release.set()
    assert await read(stream) == b"data: 2\n\n"
    await drain
    assert setting.engine.closed
    await until(lambda: not setting.ingress.is_attached("r1"))


async def test_a_failure_of_the_engine_is_a_500_without_its_words(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    stream = setting.send("crash")
    assert await read(stream) == b""
    assert stream.reply is not None
    assert stream.reply.status == 500
    assert b"ValueError" in stream.reply.body
    assert b"secret" not in stream.reply.body
    assert setting.given_up == []


async def test_a_dead_engine_ends_the_replica_and_is_no_answer(setting: Setting) -> None:
    stream = setting.send("die")
    with pytest.raises(EngineDeadError):
        await setting.calls[0]
    assert setting.given_up == ["the core is gone"]
    assert stream.reply is None
    # What the end of the process does to the connection.
    next(iter(setting.replica._connections.values()))._writer.transport.abort()
    with pytest.raises(ReplicaLostError):
        await stream.next()


async def test_a_replica_that_gives_itself_up_is_out_of_routing_before_it_saves_anything(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event loop turns no more: what is seen of it is seen by the ingress, here in a thread of its own."""
    seen: list[bool] = []
    ended: list[int] = []

    def save() -> None:
        connection = next(iter(setting.replica._connections.values()))
        peer = setting.ingress.attached()[0].writer.get_extra_info("socket")
        # The kernel has told the ingress that nothing more will come, though no turn of the loop has passed.
        with socket.socket(fileno=os.dup(peer.fileno())) as end:
            end.settimeout(1.0)
            while data := end.recv(65_536):
                assert data
            seen.append(connection.open)

    monkeypatch.undo()
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(setting.replica, "_before_exit", save)
    await setting.replica.attach(setting.address)
    await until(setting.ingress.attached)
    stream = setting.send("wait")
    assert await stream.next() == b"data: 1\n\n"
    setting.replica._give_up("the core is gone")
    assert (len(seen), ended) == (1, [EXIT_ENGINE_LOST])
    with pytest.raises(ReplicaLostError):
        await stream.next()
    assert setting.ingress.told("r1") is None


async def test_a_replica_ends_whatever_fails_on_its_way_out(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    def fail() -> None:
        raise ValueError("full disk")

    monkeypatch.undo()
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(setting.replica, "_before_exit", fail)
    with pytest.raises(ValueError, match="full disk"):
        setting.replica._give_up("the core is gone")
    assert ended == [EXIT_ENGINE_LOST]


async def test_what_is_kept_of_an_ingress_goes_with_it(setting: Setting) -> None:
    for number in range(3):
        other = ChannelReceiver(f"other{number}")
        await setting.replica.attach(await other.start("127.0.0.1"))
        await until(other.attached)
        await other.close()
    await until(lambda: not setting.replica._connections)
    assert setting.replica._connecting == {}


async def test_the_watchers_verdict_ends_the_replica_and_its_health(setting: Setting) -> None:
    setting.replica.check()
    setting.engine.dead = True
    await until(lambda: setting.given_up, timeout_s=3.0)
    with pytest.raises(EngineDeadError, match="r1"):
        setting.replica.check()


async def test_stats_reach_the_ingress(setting: Setting) -> None:
    stream = setting.send("wait")
    await stream.next()
    await until(lambda: stream.replica is not None and stream.replica.stats.running == 1, timeout_s=1.0)
    setting.engine.release.set()
    await read(stream)
    await until(lambda: stream.replica is not None and stream.replica.stats.running == 0, timeout_s=1.0)


async def test_an_ingress_that_is_gone_is_an_error_of_the_call(setting: Setting) -> None:
    gone = IngressAddress("gone", "127.0.0.1", setting.address.port, "x")
    await setting.ingress.close()
    await asyncio.sleep(0.02)
    request = EngineRequest("s", Endpoint.CHAT, {"do": "answer"})
    with pytest.raises(OSError, match="Connect call failed"):
        await setting.replica.serve(ReplicaCall("s", gone, request))


class SlowEngine(FakeEngine):
    """Never comes up."""

    async def start(self) -> None:
        await asyncio.Event().wait()


class UnreachableEngine(FakeEngine):
    """Meets a time limit of its own."""

    async def start(self) -> None:
        raise TimeoutError("of its own")


async def test_a_model_that_loads_too_long_fails_with_what_to_change():
    replica = Replica("chat", "r1", SlowEngine(), ReplicaTracer("chat", "simulated"), WatchLimits(idle_silence_s=5.0))
    with pytest.raises(EngineStartError, match=r"'chat' was not loaded within 0.05 s.*chat.replicas.start_timeout_s"):
        await replica.start(0.05)


async def test_a_time_limit_of_the_engine_itself_is_not_taken_for_the_start_limit():
    engine = UnreachableEngine()
    replica = Replica("chat", "r1", engine, ReplicaTracer("chat", "simulated"), WatchLimits(idle_silence_s=5.0))
    with pytest.raises(TimeoutError, match="of its own"):
        await replica.start(60.0)
