from __future__ import annotations

import asyncio

import pytest

from loadtests.disconnects import Departure, DisconnectPlan, Leaving, departures_table, disconnect_all
from loadtests.kv_probe import BARE_GAUGE, ProbeError, usage_in, wait_until_at_most
from loadtests.targets import parse_target
from tests.unit.loadtests.sse_server import Behaviour, serving

TEXT = """# HELP pointsman_kv_usage_ratio KV blocks in use
# TYPE pointsman_kv_usage_ratio gauge
pointsman_kv_usage_ratio{model="dense",replica="a"} 0.25
pointsman_kv_usage_ratio{model="dense",replica="b"} 0.5
pointsman_kv_usage_ratio{model="mini",replica="c"} 0.75
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="dense"} 0.125
"""


def test_usage_is_that_of_the_fullest_replica_of_the_model() -> None:
    assert usage_in(TEXT, "dense", "pointsman_kv_usage_ratio") == 0.5
    assert usage_in(TEXT, "mini", "pointsman_kv_usage_ratio") == 0.75
    assert usage_in(TEXT, "dense", BARE_GAUGE) == 0.125
    with pytest.raises(ProbeError, match="--gauge"):
        usage_in(TEXT, "other", BARE_GAUGE)


async def test_waiting_ends_when_memory_is_back_or_never() -> None:
    readings = [0.5, 0.4, 0.1, 0.0]

    async def falling() -> float:
        return readings.pop(0) if len(readings) > 1 else readings[0]

    assert await wait_until_at_most(falling, 0.1, timeout_s=1.0, every_s=0.01) is not None
    assert readings == [0.0]

    async def stuck() -> float:
        return 0.5

    assert await wait_until_at_most(stuck, 0.1, timeout_s=0.05, every_s=0.01) is None


async def test_clients_leave_in_all_three_ways_and_memory_is_watched() -> None:
    behaviour = Behaviour(gap_s=0.01)
    calls = 0

    async def probe() -> float:
        nonlocal calls
        calls += 1
        # Held just before each departure, back at the second look after it.
        return 0.0 if calls <= 5 else (0.3, 0.3, 0.0)[(calls - 6) % 3]

    said: list[Departure] = []
    async with serving(behaviour) as url:
        plan = DisconnectPlan(parse_target(url), "dense", count=3, crowd=3, max_tokens=1000)
        base, seen = await asyncio.wait_for(disconnect_all(plan, probe, said.append), 20)
    assert base == 0.0
    assert [departure.kind for departure in seen] == list(Leaving)
    assert all(departure.seconds is not None and departure.held == 0.3 for departure in seen)
    assert said == seen
    # One request streamed, one plain, three queued.
    assert [body["stream"] for body in behaviour.bodies].count(False) == 1
    assert len(behaviour.bodies) == 5
    assert departures_table(base, seen).row_count == 3


async def test_a_server_that_refuses_is_named() -> None:
    async def probe() -> float:
        return 0.0

    async with serving(Behaviour(status=429)) as url:
        with pytest.raises(ProbeError, match="429"):
            await disconnect_all(DisconnectPlan(parse_target(url), "dense", count=1), probe, lambda _: None)
