"""Waiting for what other tasks and processes do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Returns as soon as `condition` holds; `TimeoutError` if it does not within `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        # What is waited for happens in other processes, too, so there is no event to wait for.
        while not condition():
            await asyncio.sleep(0.005)
