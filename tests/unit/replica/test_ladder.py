"""Orders on the precision ladder: carried out one at a time, told to whoever leads, and noted in spans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cluster.records.precision_change import PrecisionChange
from cluster.telemetry import names
from deployments.channel.messages import Order
from deployments.channel.receiver import ChannelReceiver
from deployments.channel.sender import IngressAddress
from deployments.channel.stream import TokenStream
from deployments.engines.expert_routing import NoExpertLoad
from deployments.engines.kv_precision import KvPrecisionError, KvSwitch
from deployments.engines.protocol import (
    Emit,
    Endpoint,
    EngineDeadError,
    EngineReply,
    EngineRequest,
    EngineStats,
    TokenUsage,
)
from deployments.replica.ladder import ReplicaLadder
from deployments.replica.replica import Replica
from deployments.replica.spec import ReplicaCall
from deployments.replica.tracing import ReplicaTracer
from deployments.replica.watcher import WatchLimits
from tests.waiting import until


@dataclass
class SwitchingEngine(NoExpertLoad):
    """An engine of 10 blocks in 16 bits and 20 in 8."""

    sampling_defaults = (0.7, 0.8)

    kind: str = "simulated"
    weights: str = "int8"
    kv_precisions: tuple[str, ...] = ("auto", "fp8")
    kv_blockers: tuple[str, ...] = ()
    kv: str = "auto"
    fails: Exception | None = None
    slow: asyncio.Event | None = None
    switches: list[str] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """At once."""

    async def run(self, request: EngineRequest, emit: Emit) -> EngineReply:
        emit(b"data: 1\n\n")
        await self.release.wait()
        return EngineReply(200, usage=TokenUsage(3, 1))

    async def set_kv_precision(self, precision: str) -> KvSwitch:
        if self.slow is not None:
            await self.slow.wait()
        if self.fails is not None:
            raise self.fails
        before, self.kv = self.kv, precision
        self.switches.append(precision)
        return KvSwitch(before, precision, 0.25, 2, 300, 10, 20 if precision == "fp8" else 10)

    def stats(self) -> EngineStats:
        return EngineStats(kv_blocks=20 if self.kv == "fp8" else 10, kv_block_tokens=16, kv_precision=self.kv)

    async def heartbeat(self) -> None:
        """Alive."""

    def pids(self) -> tuple[int, ...]:
        return ()

    async def close(self) -> None:
        """Nothing to free."""


def order(number: int, level: int, kv: str = "auto") -> Order:
    measures = tuple(f"level{at}" for at in range(1, level + 1))
    return Order(f"o{number}", measures, kv, "kv_usage", "the cache is full")


@pytest.fixture
def told() -> list[PrecisionChange]:
    return []


async def test_an_order_is_carried_out_and_told(told: list[PrecisionChange]) -> None:
    ladder = ReplicaLadder("dense", "r1", SwitchingEngine(), told.append)
    await ladder.obey(order(1, 1))
    await ladder.obey(order(2, 2, "fp8"))
    first, second = told
    assert (first.level_before, first.level, first.kv_before, first.kv_after, first.pause_s) == (
        0,
        1,
        "auto",
        "auto",
        0,
    )
    assert (second.level_before, second.level, second.level_name) == (1, 2, "level2")
    assert (second.kv_before, second.kv_after, second.preempted, second.tokens) == ("auto", "fp8", 2, 300)
    assert (second.blocks_before, second.blocks_after, second.error) == (10, 20, None)
    position = ladder.position
    assert (position.level, position.kv_precision, position.own_kv_blocks, position.order) == (2, "fp8", 10, "o2")
    assert position.kv_since == position.level_since > first.at - 1
    await ladder.obey(order(3, 1, "auto"))
    assert (ladder.position.kv_precision, ladder.position.own_kv_blocks) == ("auto", 10)


@pytest.mark.parametrize(
    ("failure", "said"), [(KvPrecisionError("no memory"), "no memory"), (RuntimeError("secret"), "RuntimeError")]
)
async def test_a_switch_that_fails_leaves_the_precision_and_not_the_level(
    told: list[PrecisionChange], failure: Exception, said: str
) -> None:
    engine = SwitchingEngine(fails=failure)
    ladder = ReplicaLadder("dense", "r1", engine, told.append)
    await ladder.obey(order(1, 2, "fp8"))
    (change,) = told
    assert (change.level, change.level_name, change.kv_after, change.error) == (2, "level2", "auto", said)
    position = ladder.position
    assert (position.level, position.kv_precision, position.order, position.under_way) == (2, "auto", "o1", "")
    assert (position.kv_failed, position.kv_failures, position.kv_since) == (change.at, 1, 0.0)
    await ladder.obey(order(2, 3, "fp8"))
    assert ladder.position.kv_failures == 2
    engine.fails = None
    await ladder.obey(order(3, 3, "fp8"))
    assert (ladder.position.kv_precision, ladder.position.kv_failures, ladder.position.kv_failed) == ("fp8", 0, 0.0)


async def test_an_order_that_comes_while_another_is_under_way_is_dropped(told: list[PrecisionChange]) -> None:
    engine = SwitchingEngine(slow=asyncio.Event())
    moves: list[str] = []
    ladder = ReplicaLadder("dense", "r1", engine, told.append, lambda: moves.append(ladder.position.under_way))
    under_way = asyncio.create_task(ladder.obey(order(1, 2, "fp8")))
    await asyncio.sleep(0)
    assert ladder.position.under_way == "o1"
    await ladder.obey(order(2, 0))
    assert engine.slow is not None
    engine.slow.set()
    await under_way
    assert engine.switches == ["fp8"]
    assert [change.id for change in told] == ["o1"]
    assert moves == ["o1", ""]
    await ladder.obey(order(1, 2, "fp8"))
    assert len(told) == 1


async def test_an_order_that_changes_nothing_leaves_no_trace(told: list[PrecisionChange]) -> None:
    ladder = ReplicaLadder("dense", "r1", SwitchingEngine(), told.append)
    await ladder.obey(order(1, 2, "fp8"))
    before = ladder.position
    await ladder.obey(order(2, 2, "fp8"))
    assert len(told) == 1
    assert (ladder.position.order, ladder.position.level_since) == ("o2", before.level_since)


@dataclass
class Setting:
    engine: SwitchingEngine
    replica: Replica
    ingresses: list[ChannelReceiver]
    addresses: list[IngressAddress]
    given_up: list[str]
    changes: list[list[PrecisionChange]]

    def send(self) -> TokenStream:
        stream = TokenStream("s1", 1_000_000)
        self.ingresses[0].open_stream(stream, "dense")
        request = EngineRequest("s1", Endpoint.CHAT, {})
        self.call = asyncio.create_task(self.replica.serve(ReplicaCall("s1", self.addresses[0], request)))
        return stream


@pytest.fixture
async def setting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    """A replica with two ingresses, of which the first leads."""
    engine = SwitchingEngine()
    replica = Replica("dense", "r1", engine, ReplicaTracer("dense", "simulated"), WatchLimits(period_s=0.01))
    given_up: list[str] = []
    monkeypatch.setattr(replica, "_give_up", given_up.append)
    ingresses = [ChannelReceiver("a"), ChannelReceiver("b")]
    addresses = [await one.start("127.0.0.1") for one in ingresses]
    changes: list[list[PrecisionChange]] = [[], []]
    for ingress, noted in zip(ingresses, changes, strict=True):
        ingress.on_changed = noted.append
    await replica.start()
    for address in addresses:
        await replica.attach(address)
    await until(lambda: all(ingress.attached() for ingress in ingresses))
    yield Setting(engine, replica, ingresses, addresses, given_up, changes)
    engine.release.set()
    await replica.drain()
    for ingress in ingresses:
        await ingress.close()
    await asyncio.sleep(0.02)


async def test_one_ingress_leads_and_only_its_orders_count(setting: Setting) -> None:
    first, second = (ingress.attached()[0] for ingress in setting.ingresses)
    await until(lambda: first.leads)
    assert not second.leads
    assert first.hello.kv_precisions == ("auto", "fp8")
    assert (first.hello.weights, first.hello.temperature, first.hello.top_p) == ("int8", 0.7, 0.8)
    second.order(order(1, 2, "fp8"))
    first.order(order(2, 1))
    await until(lambda: first.position.level == 1 and second.position.level == 1)
    assert setting.engine.switches == []
    assert [[change.id for change in noted] for noted in setting.changes] == [["o2"], []]


async def test_the_next_ingress_leads_when_the_first_is_gone(setting: Setting) -> None:
    second = setting.ingresses[1].attached()[0]
    await setting.ingresses[0].close()
    await until(lambda: second.leads, timeout_s=3.0)
    second.order(order(1, 2, "fp8"))
    await until(lambda: second.position.level == 2)
    assert [change.id for change in setting.changes[1]] == ["o1"]


async def test_what_changed_while_no_ingress_was_there_is_told_to_the_next(setting: Setting) -> None:
    for ingress in setting.ingresses:
        await ingress.close()
    await until(lambda: setting.replica._leader() is None, timeout_s=3.0)
    await setting.replica._ladder.obey(order(1, 2, "fp8"))
    third = ChannelReceiver("c")
    noted: list[PrecisionChange] = []
    third.on_changed = noted.append
    address = await third.start("127.0.0.1")
    await setting.replica.attach(address)
    await until(lambda: [change.id for change in noted] == ["o1"])
    setting.ingresses.append(third)


async def test_a_level_that_an_operator_holds_is_no_pressure(setting: Setting) -> None:
    pinned = Order("o1", ("level1",), "auto", "pinned", "held")
    await setting.replica._ladder.obey(pinned)
    assert setting.replica.pressed_level == 0
    await setting.replica._ladder.obey(order(2, 2))
    assert setting.replica.pressed_level == 2


async def test_an_engine_that_ends_over_it_is_given_up(setting: Setting) -> None:
    setting.engine.fails = EngineDeadError("half changed")
    setting.ingresses[0].attached()[0].order(order(1, 2, "fp8"))
    await until(lambda: setting.given_up == ["half changed"])


@pytest.fixture
def spans() -> AsyncIterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = provider
    yield exporter  # type: ignore[misc]
    trace._TRACER_PROVIDER = before


async def test_a_request_that_lives_through_a_switch_says_so_in_its_span(
    spans: InMemorySpanExporter, setting: Setting
) -> None:
    attached = setting.ingresses[0].attached()[0]
    stream = setting.send()
    assert await stream.next() == b"data: 1\n\n"
    attached.order(order(1, 1))
    attached.order(order(2, 2, "fp8"))
    await until(lambda: attached.position.level == 2)
    setting.engine.release.set()
    await setting.call
    found = {span.name: span for span in spans.get_finished_spans()}
    (event,) = found[names.SPAN_REPLICA].events
    assert event.name == names.EVENT_KV_SWITCH
    assert event.attributes is not None
    assert (event.attributes[names.KV_PRECISION_BEFORE], event.attributes[names.KV_PRECISION]) == ("auto", "fp8")
    own = found[names.SPAN_PRECISION]
    assert own.parent is None
    assert own.attributes is not None
    assert own.attributes[names.LEVEL] == 2
    assert own.attributes[names.LEVEL_REASON] == "the cache is full"
    assert own.end_time is not None
    assert own.start_time is not None
    assert own.end_time - own.start_time == pytest.approx(0.25e9, rel=0.01)
