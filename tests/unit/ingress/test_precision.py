"""The ingress watches its replicas, orders them down the ladder and up again, and knows the level that is in force."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from cluster.records.precision_change import PrecisionChange
from deployments.channel.messages import Hello, LadderPosition, Order
from deployments.channel.receiver import AttachedReplica, ChannelReceiver
from deployments.engines.protocol import EngineStats
from deployments.ingress.precision import PrecisionControl
from tests.unit.ingress.ladders import Connected, config


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
        replica.position = msgspec.structs.replace(
            before,
            level=order.level,
            level_since=at if order.level != before.level else before.level_since,
            kv_precision=order.kv_precision,
            kv_since=at if order.kv_precision != before.kv_precision else before.kv_since,
            own_kv_blocks=10,
            measures=order.measures,
            cause=order.cause,
            order=order.id,
        )
        return order

    def age(self, replica: AttachedReplica, seconds: float) -> None:
        """Let the replica's last changes have been longer ago."""
        position = replica.position
        replica.position = msgspec.structs.replace(
            position,
            level_since=position.level_since - seconds if position.level_since else 0.0,
            kv_since=position.kv_since - seconds if position.kv_since else 0.0,
        )


def world(**precision: Any) -> World:
    channel = ChannelReceiver("a")
    noted: list[PrecisionChange] = []
    control = PrecisionControl(config(**precision), channel, lambda _: 0, noted.append)
    channel.on_changed = control.note
    control.follow(control.config)
    return World(control, channel, noted)


async def test_pressure_sends_a_replica_down_rung_by_rung_and_calm_sends_it_up() -> None:
    here = world()
    replica = here.join("r1")
    levels = []
    for _ in range(5):
        here.tell(replica, 0.95, waiting=2)
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
        here.tell(replica, 0.95, waiting=2)
    here.look(0.0)
    here.look(0.3)
    assert [len(cast("Connected", one.writer).orders) for one in (first, second)] == [1, 0]
    here.obey(first)
    here.look(1.0)
    assert cast("Connected", second.writer).orders == []
    here.age(first, 3)
    here.look(1.0)
    assert [order.level for order in cast("Connected", second.writer).orders] == [1]
    assert here.control.level("big") == 0
    here.obey(second)
    assert here.control.level("big") == 1


async def test_an_order_that_nothing_is_heard_of_is_given_again() -> None:
    here = world()
    replica = here.join("r1")
    here.tell(replica, 0.95, waiting=2)
    here.look(0.0)
    here.look(9.0)
    assert len(cast("Connected", replica.writer).orders) == 1
    here.look(11.0)
    assert len(cast("Connected", replica.writer).orders) == 2


async def test_replicas_of_another_ingress_get_no_orders() -> None:
    here = world()
    replica = here.join("r1", leads=False)
    here.tell(replica, 0.95, waiting=2)
    here.look(0.0)
    assert cast("Connected", replica.writer).orders == []


async def test_a_switch_that_fails_does_not_hold_up_the_rest_of_the_ladder() -> None:
    here = world()
    replica = here.join("r1")
    levels = []
    for _ in range(6):
        here.tell(replica, 0.95, waiting=2)
        here.look(0.0)
        order = here.obey(replica)
        if order is not None and order.kv_precision == "fp8":
            failures = replica.position.kv_failures + 1
            replica.position = msgspec.structs.replace(
                replica.position, kv_precision="auto", kv_since=0.0, kv_failed=time.time(), kv_failures=failures
            )
        levels.append(None if order is None else (order.level, order.kv_precision))
        here.age(replica, 11)
        if replica.position.kv_failed:
            replica.position = msgspec.structs.replace(replica.position, kv_failed=replica.position.kv_failed - 11)
    # It is tried at its rung, again once the dwell time is over, then after twice that: meanwhile the others are taken.
    assert levels == [(1, "auto"), (2, "fp8"), (2, "fp8"), (3, "auto"), (3, "fp8"), (4, "auto")]
    assert here.control.level("big") == 4


async def test_an_order_that_takes_long_is_not_given_again() -> None:
    here = world(levels=["fp8_kv"])
    replica, other = here.join("r1"), here.join("r2")
    here.tell(replica, 0.97)
    here.tell(other, 0.95)
    here.look(0.0)
    (order,) = cast("Connected", replica.writer).orders
    replica.position = LadderPosition(under_way=order.id)
    for at in (5.0, 11.0, 60.0):
        replica.heard_at = other.heard_at = asyncio.get_running_loop().time()
        here.look(at)
    assert len(cast("Connected", replica.writer).orders) == 1
    assert cast("Connected", other.writer).orders == []


async def test_a_replica_that_another_ingress_leads_is_in_nobodys_way() -> None:
    here = world(levels=["fp8_kv"])
    theirs, ours = here.join("a", leads=False), here.join("b")
    here.tell(theirs, 0.99)
    here.tell(ours, 0.95)
    here.look(0.0)
    assert cast("Connected", theirs.writer).orders == []
    assert len(cast("Connected", ours.writer).orders) == 1


async def test_the_level_of_a_model_is_that_of_half_its_replicas() -> None:
    here = world()
    replicas = [here.join(f"r{number}") for number in range(5)]
    for replica in replicas[:4]:
        replica.position = LadderPosition(level=2, measures=("conservative_sampling", "fp8_kv"))
    # The fifth has just started.
    assert here.control.level("big") == 2
    for replica in replicas[:3]:
        replica.position = LadderPosition()
    assert here.control.level("big") == 0


async def test_levels_that_are_renumbered_bring_nothing_into_force() -> None:
    here = world()
    replica = here.join("r1")
    replica.position = LadderPosition(level=1, measures=("conservative_sampling",))
    here.control.follow(config(levels=["shed", "conservative_sampling"]))
    assert here.control.level("big") == 0


async def test_a_clock_that_is_ahead_does_not_stop_the_ladder() -> None:
    here = world()
    replica = here.join("r1")
    replica.position = LadderPosition(
        level=1, measures=("conservative_sampling",), level_since=time.time() + 3600.0, cause="kv_usage"
    )
    here.tell(replica, 0.95, waiting=2)
    here.look(0.0)
    assert here.obey(replica) is None
    here.look(11.0)
    assert here.obey(replica) is not None


async def test_a_config_that_switches_it_off_brings_replicas_back() -> None:
    here = world()
    replica = here.join("r1")
    here.tell(replica, 0.95, waiting=2)
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
