from __future__ import annotations

import asyncio
import time

from deployments.engines.simulated.clock import RealClock, VirtualClock


async def test_virtual_sleepers_wake_in_order_and_at_once() -> None:
    clock = VirtualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.now()))
        await clock.sleep(seconds)
        woken.append((name, clock.now()))

    began = time.monotonic()
    await asyncio.gather(sleeper("long", 3000.0), sleeper("short", 1000.0), sleeper("same", 1000.0))
    assert time.monotonic() - began < 1.0
    assert woken == [
        ("short", 1000.0),
        ("same", 1000.0),
        ("short", 2000.0),
        ("same", 2000.0),
        ("long", 3000.0),
        ("long", 6000.0),
    ]
    assert clock.wall() == 6000


async def test_a_cancelled_sleeper_does_not_move_time() -> None:
    clock = VirtualClock(start=5.0)
    sleeper = asyncio.create_task(clock.sleep(100.0))
    await asyncio.sleep(0)
    sleeper.cancel()
    await clock.sleep(1.0)
    assert clock.now() == 6.0
    await clock.sleep_until(2.0)
    assert clock.now() == 6.0


async def test_real_time_passes() -> None:
    clock = RealClock()
    began = clock.now()
    await clock.sleep_until(began + 0.02)
    assert 0.015 < clock.now() - began < 0.5
    assert abs(clock.wall() - time.time()) < 5
