"""The ingress watches its replicas, orders them down the ladder and up again, and knows the level that is in force."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.config.cluster import ClusterConfig
from cluster.records.precision_change import PrecisionChange
from deployments.channel.messages import Hello, LadderPosition, Order
from deployments.channel.receiver import AttachedReplica, ChannelReceiver
from deployments.engines.protocol import EngineStats
from deployments.ingress.precision import PrecisionControl
from tests.unit.ingress.bare_ingress import BareIngress, bare_ingress

CHAT = "/v1/chat/completions"


def config(**precision: Any) -> ClusterConfig:
    engine = {"type": "simulated", "max_model_len": 512}
    quality = {"fp8": {"agreement": 0.99, "kl": 0.001, "consistency": 0.9}}
    return ClusterConfig.model_validate(
        {
            "models": {
                "big": {
                    "kind": "dense",
                    "roles": ["strong", "fast"],
                    "source": "embedded:dense",
                    "engine": engine,
                    "precision": {"twin": "small", "kv_quality": quality},
                },
                "small": {"kind": "mini", "roles": ["little"], "source": "embedded:dense", "engine": engine},
            },
            "routing": {"code_role": "strong"},
            "precision": {"dwell_s": 10, "window_s": 2, "stagger_s": 3, **precision},
        }
    )


class Connected:
    """A replica's connection, and the orders that went over it."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def is_closing(self) -> bool:
        return False

    def write(self, frame: bytes) -> None:
        from deployments.channel.messages import _decoder

        self.orders += [one for one in _decoder.decode(frame[4:]) if isinstance(one, Order)]


@dataclass
class World:
    """A control whose looks a test makes itself, and replicas that obey."""

    control: PrecisionControl
    channel: ChannelReceiver
    noted: list[PrecisionChange] = field(default_factory=list)

    def join(self, name: str, *, model: str = "big", leads: bool = True) -> AttachedReplica:
        hello = Hello("s", name, model, "simulated", 1, (), "int8", ("auto", "fp8"))
        replica = AttachedReplica(hello, cast("asyncio.StreamWriter", Connected()), asyncio.get_running_loop().time())
        replica.leads = leads
        self.channel._replicas[name] = replica
        self.tell(replica, 0.1)
        return replica

    def tell(self, replica: AttachedReplica, usage: float, **stats: Any) -> None:
        """What the replica says of itself now."""
        replica.heard_at = asyncio.get_running_loop().time()
        blocks = 20 if replica.position.kv_precision == "fp8" else 10
        replica.stats = EngineStats(kv_usage=usage, kv_blocks=blocks, kv_block_tokens=16, kv_precision="x", **stats)

    def look(self, at_s: float) -> None:
        """One look of the control, so many seconds from now."""
        self.control._look(asyncio.get_running_loop().time() + at_s)

    def obey(self, replica: AttachedReplica, ago_s: float = 0.0) -> Order | None:
        """Carry out the last order; how long ago the replica did is up to the test."""
        writer = cast("Connected", replica.writer)
        if not writer.orders:
            return None
        order = writer.orders.pop()
        before, at = replica.position, time.time() - ago_s
        replica.position = LadderPosition(
            order.level,
            at if order.level != before.level else before.level_since,
            order.kv_precision,
            at if order.kv_precision != before.kv_precision else before.kv_since,
            10,
            order.id,
        )
        return order

    def age(self, replica: AttachedReplica, seconds: float) -> None:
        """Let the replica's last changes have been longer ago."""
        position = replica.position
        replica.position = LadderPosition(
            position.level,
            position.level_since - seconds if position.level_since else 0.0,
            position.kv_precision,
            position.kv_since - seconds if position.kv_since else 0.0,
            position.own_kv_blocks,
            position.order,
        )


def world(**precision: Any) -> World:
    channel = ChannelReceiver("a")
    noted: list[PrecisionChange] = []
    control = PrecisionControl(config(**precision), channel, lambda _: 0, noted.append)
    channel.on_changed = control._changed
    control.follow(control.config)
    return World(control, channel, noted)


async def test_pressure_sends_a_replica_down_rung_by_rung_and_calm_sends_it_up() -> None:
    here = world()
    replica = here.join("r1")
    levels = []
    for _ in range(5):
        here.tell(replica, 0.95)
        here.look(0.0)
        order = here.obey(replica)
        levels.append(None if order is None else (order.level, order.level_name, order.kv_precision, order.cause))
        here.age(replica, 11)
    assert levels == [
        (1, "conservative_sampling", "auto", "kv_usage"),
        (2, "fp8_kv", "fp8", "kv_usage"),
        (3, "twin", "fp8", "kv_usage"),
        (4, "shed", "fp8", "kv_usage"),
        None,
    ]
    assert here.control.level("big") == 4
    here.tell(replica, 0.05)
    here.look(0.0)
    assert here.obey(replica) is None
    back = []
    for step in range(4):
        here.look(11.0 + step)
        order = here.obey(replica)
        assert order is not None
        back.append((order.level, order.kv_precision, order.cause))
        here.age(replica, 11)
    assert back == [(3, "fp8", "calm"), (2, "fp8", "calm"), (1, "auto", "calm"), (0, "auto", "calm")]


async def test_an_order_under_way_is_not_given_again_and_holds_others_back() -> None:
    here = world(levels=["fp8_kv"])
    first, second = here.join("r1"), here.join("r2")
    for replica in (first, second):
        here.tell(replica, 0.95)
    here.look(0.0)
    here.look(0.3)
    assert [len(cast("Connected", one.writer).orders) for one in (first, second)] == [1, 0]
    here.obey(first)
    here.look(1.0)
    assert cast("Connected", second.writer).orders == []
    here.age(first, 3)
    here.look(1.0)
    assert [order.level for order in cast("Connected", second.writer).orders] == [1]
    # The lowest level counts: the other replica can take the request.
    assert here.control.level("big") == 0
    here.obey(second)
    assert here.control.level("big") == 1


async def test_an_order_that_nothing_is_heard_of_is_given_again() -> None:
    here = world()
    replica = here.join("r1")
    here.tell(replica, 0.95)
    here.look(0.0)
    here.look(9.0)
    assert len(cast("Connected", replica.writer).orders) == 1
    here.look(11.0)
    assert len(cast("Connected", replica.writer).orders) == 2


async def test_replicas_of_another_ingress_get_no_orders() -> None:
    here = world()
    replica = here.join("r1", leads=False)
    here.tell(replica, 0.95)
    here.look(0.0)
    assert cast("Connected", replica.writer).orders == []


async def test_a_failed_order_is_noted_and_not_tried_again_at_once() -> None:
    here = world(levels=["fp8_kv"])
    replica = here.join("r1")
    here.tell(replica, 0.95)
    here.look(0.0)
    (order,) = cast("Connected", replica.writer).orders
    failed = PrecisionChange(
        order.id, 1.0, "big", "r1", "kv_usage", "", 0, 0, "normal", "x", "x", error="out of memory"
    )
    replica.position = LadderPosition(order=order.id)
    here.channel.on_changed(failed)
    assert here.noted == [failed]
    here.look(1.0)
    here.look(9.0)
    assert len(cast("Connected", replica.writer).orders) == 1
    here.look(10.5)
    assert len(cast("Connected", replica.writer).orders) == 2


async def test_a_config_that_switches_it_off_brings_replicas_back() -> None:
    here = world()
    replica = here.join("r1")
    here.tell(replica, 0.95)
    here.look(0.0)
    here.obey(replica)
    here.control.follow(config(enabled=False))
    here.look(0.1)
    order = here.obey(replica)
    assert order is not None
    assert (order.level, order.cause) == (0, "disabled")


async def test_what_is_gone_is_forgotten() -> None:
    here = world()
    here.join("r1")
    here.look(0.0)
    assert set(here.control._watched) == {"r1"}
    del here.channel._replicas["r1"]
    here.join("r2")
    here.look(0.3)
    assert set(here.control._watched) == {"r2"}


# ------------------------------------------------------------------------------------------ what requests meet


def at_level(ingress: BareIngress, level: int, model: str = "big") -> None:
    """Put the model's replica at a level."""
    hello = Hello("s", f"at-{model}", model, "simulated", 1, (), "int8", ("auto", "fp8"))
    replica = AttachedReplica(hello, cast("asyncio.StreamWriter", Connected()), asyncio.get_running_loop().time())
    replica.position = LadderPosition(level)
    ingress.services.channel._replicas[f"at-{model}"] = replica


def chat(model: str = "big", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
async def test_answers_name_the_level_and_what_it_changed(tmp_path: Path, level: int) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        at_level(ingress, level)
        reply = await ingress.post(CHAT, chat(pointsman={"business_critical": False}, temperature=0.8))
        assert reply.status == 200
        import json

        told = json.loads(reply.body)["pointsman"]
        if level >= 3:
            assert reply.headers["x-pointsman-model"] == told["model"] == "small"
            assert told["level"] == {"number": 0, "name": "normal", "changed": []}
            assert "short of KV memory" in told["reason"]
            assert told["rule"].endswith("_twin")
            return
        names = ["normal", "conservative_sampling", "fp8_kv"]
        assert reply.headers["x-pointsman-level"] == f"{level} {names[level]}"
        sent = ingress.clients["big"].calls[0].request.body
        if level:
            assert told["level"]["changed"] == ["temperature 0.8 -> 0.3", "top_p open -> 0.9"]
            assert reply.headers["x-pointsman-changed"] == "temperature 0.8 -> 0.3; top_p open -> 0.9"
            assert (sent["temperature"], sent["top_p"]) == (0.3, 0.9)
        else:
            assert "x-pointsman-changed" not in reply.headers
            assert sent["temperature"] == 0.8
            assert "top_p" not in sent


async def test_business_critical_requests_stay_as_they_are_at_every_level(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        at_level(ingress, 4)
        critical = {"business_critical": True, "latency_class": "batch"}
        reply = await ingress.post(CHAT, chat(pointsman=critical, max_tokens=300))
        assert reply.status == 200
        assert reply.headers["x-pointsman-model"] == "big"
        assert "x-pointsman-changed" not in reply.headers
        assert ingress.clients["big"].calls[0].request.body["max_tokens"] == 300


async def test_best_effort_requests_are_cut_short_then_shed(tmp_path: Path) -> None:
    async with bare_ingress(config(max_completion_tokens=64), tmp_path) as ingress:
        at_level(ingress, 2)
        batch = {"latency_class": "batch"}
        reply = await ingress.post(CHAT, chat(pointsman=batch, max_tokens=300, temperature=0))
        assert reply.headers["x-pointsman-changed"] == "max_tokens 300 -> 64"
        assert ingress.clients["big"].calls[0].request.body["max_tokens"] == 64
        at_level(ingress, 4)
        # The twin takes them as long as it can.
        assert (await ingress.post(CHAT, chat(pointsman=batch))).headers["x-pointsman-model"] == "small"
        ingress.clients["small"].up = False
        refused = await ingress.post(CHAT, chat(pointsman=batch))
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "shed", "10")
        assert "latency_class" in refused.error["message"]
        assert (await ingress.post(CHAT, chat())).status == 200


async def test_a_twin_that_the_caller_does_not_allow_takes_nothing(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        at_level(ingress, 3)
        reply = await ingress.post(CHAT, chat("auto", pointsman={"allowed_models": ["big"]}))
        assert reply.headers["x-pointsman-model"] == "big"


async def test_a_twin_that_holds_less_than_was_asked_for_takes_nothing(tmp_path: Path) -> None:
    document = config().model_dump()
    document["models"]["small"]["engine"]["max_model_len"] = 32
    async with bare_ingress(ClusterConfig.model_validate(document), tmp_path) as ingress:
        at_level(ingress, 3)
        reply = await ingress.post(CHAT, chat(max_tokens=200))
        assert reply.headers["x-pointsman-model"] == "big"


async def test_the_route_page_tells_of_the_twin(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        at_level(ingress, 3)
        reply = await ingress.post("/v1/route", chat())
        assert reply.status == 200
        assert b'"small"' in reply.body


async def test_the_page_of_levels(tmp_path: Path) -> None:
    import json

    async with bare_ingress(config(), tmp_path) as ingress:
        at_level(ingress, 2)
        ingress.services.precision.follow(ingress.services.config)
        ingress.services.channel._replicas["at-big"].stats = EngineStats(kv_blocks=20, kv_block_tokens=16, kv_usage=0.5)
        told = json.loads((await ingress.request("GET", "/v1/precision")).body)
        assert told["levels"] == ["normal", "conservative_sampling", "fp8_kv", "twin", "shed"]
        (replica,) = told["models"]["big"]["replicas"]
        assert (replica["level"], replica["level_name"], replica["kv_blocks"]) == (2, "fp8_kv", 20)
        assert told["models"]["big"]["kv_quality"]["fp8"]["agreement"] == 0.99
        assert "small" not in told["models"]
