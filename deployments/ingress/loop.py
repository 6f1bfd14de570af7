"""The event loop of an ingress: kept free, and watched."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable

SWITCH_S = 0.001
"""How long the thread that parses large bodies may keep the interpreter from the loop; Python's own default is 5 ms."""

LOOK_S = 0.025
"""Seconds between two looks: whatever stops the loop for longer than this shows, less at most this."""

WINDOW_S = 0.5
"""Seconds whose worst look is kept, so that a scrape does not have to come in the very moment."""


def keep_responsive() -> None:
    """Once all is set up: shorten what other threads and the garbage collector can take of the loop's time.

    A full collection looks at every object of the process; those that are there now stay, so it need not.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()


async def watch_lag(report: Callable[[float], None]) -> None:
    """Report, again and again, how late the loop was at worst in the last one to two windows, seconds. Never returns."""
    loop = asyncio.get_running_loop()
    before = worst = 0.0
    turn = loop.time() + WINDOW_S
    while True:
        due = loop.time() + LOOK_S
        await asyncio.sleep(LOOK_S)
        now = loop.time()
        worst = max(worst, now - due)
        report(max(before, worst))
        if now >= turn:
            before, worst, turn = worst, 0.0, now + WINDOW_S
