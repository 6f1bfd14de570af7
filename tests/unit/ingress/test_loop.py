from __future__ import annotations

import asyncio
import time

from deployments.ingress import loop as loop_module
from deployments.ingress.loop import LOOK_S, watch_lag
from tests.waiting import until


async def test_a_stopped_loop_is_seen_whenever_it_stops_and_forgotten_later(monkeypatch) -> None:
    monkeypatch.setattr(loop_module, "WINDOW_S", 0.2)
    seen: list[float] = []
    watch = asyncio.get_running_loop().create_task(watch_lag(seen.append))
    await until(lambda: len(seen) > 2)
    for delay in (0.0, 0.01, 0.02):
        await asyncio.sleep(0.5 + delay)
        time.sleep(0.1)  # noqa: ASYNC251 - this is the stop
        await asyncio.sleep(2 * LOOK_S)
        assert seen[-1] >= 0.1 - LOOK_S - 0.005
    await until(lambda: seen[-1] < 0.05, timeout_s=3.0)
    watch.cancel()
