"""How a trunk asks for pools that are parked, and for how long it waits for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from cluster.experts.pools import PoolMap
from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)

TOUCH_S: Final = 0.25
"""Seconds between two touches of one file."""


class Parked:
    """Files that say which parked pools are wanted, and the pools that were waited for in vain."""

    def __init__(self, folder: Path, wake_s: float) -> None:
        self._folder = folder
        self._wake_s = wake_s
        self._touched: dict[str, float] = {}
        self._given_up: set[str] = set()

    def want(self, pool: str) -> None:
        """Tokens have come for a parked pool: touch its file, `TOUCH_S` after the last time at the earliest."""
        now = time.monotonic()
        if now - self._touched.get(pool, -TOUCH_S) < TOUCH_S:
            return
        self._touched[pool] = now
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / pool).touch()
        except OSError as error:
            _log.warning("pool %s is parked and cannot be asked for: %s", Safe(pool), type(error).__name__)

    def waits_for(self, pools: Collection[str], since: float) -> bool:
        """Whether tokens that came at `since` are to wait on for any of these pools; it counts as given up otherwise.

        One that was given up is not waited for again before it has had a replica: each layer of each step would wait.
        """
        waiting = set(pools) - self._given_up
        if waiting and time.monotonic() - since < self._wake_s:
            return True
        for pool in waiting:
            _log.warning("pool %s is parked and got no replica within %g s", Safe(pool), self._wake_s)
        self._given_up |= waiting
        return False

    def look(self, pool_map: PoolMap) -> None:
        """Another map is in force: pools that have replicas by it may be waited for again, once they are parked anew."""
        self._given_up -= {pool.name for pool in pool_map.pools if pool.replicas}
        self._given_up &= {pool.name for pool in pool_map.pools}
