"""The links of a trunk to all replicas of its pool map: which work, and a thread that brings back those that do not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from cluster.experts.pools import Pool, PoolMap, Replica
from deployments.experts.link import Link, LinkError, Model

_log = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 0.2
LONGEST_RETRY_S: Final = 5.0
_CONNECTING: Final = 16


@dataclass(slots=True)
class _Lost:
    pool: Pool
    replica: Replica
    wait_s: float = FIRST_RETRY_S
    next_try: float = field(default_factory=time.monotonic)


class Links:
    """Links by pool. The engine's thread uses them; only what comes back crosses over from the other thread."""

    def __init__(self, pool_map: PoolMap, model: Model, secret: bytes, timeout_s: float) -> None:
        self.pool_map = pool_map
        self.of_pool: list[list[Link]] = [[] for _ in pool_map.pools]
        self.version = 0
        """Changes whenever a link comes or goes."""
        self.losses = 0
        """Links that broke or were late, since start."""
        self._model, self._secret, self._timeout_s = model, secret, timeout_s
        self._lost: list[_Lost] = []
        self._fresh: list[tuple[Pool, Link]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._keeper: threading.Thread | None = None

    def open(self, kept: Iterable[Link] = ()) -> list[str]:
        """Connect to every replica at the same time, taking over `kept` links; returns why some cannot be used."""
        known = {(link.replica.name, link.replica.address): link for link in kept}
        wanted = [(number, pool, r) for number, pool in enumerate(self.pool_map.pools) for r in pool.replicas]
        failures = []
        with ThreadPoolExecutor(_CONNECTING, thread_name_prefix="pool-connect") as executor:
            tries = []
            for number, pool, replica in wanted:
                link = known.get((replica.name, replica.address))
                if link is not None:
                    self.of_pool[number].append(link)
                else:
                    tries.append((number, pool, replica, executor.submit(self._connect, pool, replica)))
            for number, pool, replica, attempt in tries:
                try:
                    self.of_pool[number].append(attempt.result())
                except LinkError as error:
                    failures.append(str(error))
                    self._lost.append(_Lost(pool, replica))
        self.version += 1
        if self._lost:
            self._wake()
        return failures

    def _connect(self, pool: Pool, replica: Replica) -> Link:
        return Link(replica, pool.holds, self._model, self._secret, self._timeout_s)

    def drop(self, link: Link, error: LinkError) -> None:
        """Leave a link out from now on, and have its replica tried again."""
        for number, pool in enumerate(self.pool_map.pools):
            if link in self.of_pool[number]:
                self.of_pool[number].remove(link)
                link.close()
                self.version += 1
                self.losses += 1
                _log.warning("pool %r: %s", pool.name, error)
                with self._changed:
                    self._lost.append(_Lost(pool, link.replica))
                self._wake()

    def adopt(self) -> None:
        """Take in what came back. Cheap when nothing did."""
        if not self._fresh:
            return
        with self._changed:
            fresh, self._fresh = self._fresh, []
        for pool, link in fresh:
            self.of_pool[self.pool_map.pools.index(pool)].append(link)
            self.version += 1
            _log.info("pool %r: replica %r is back", pool.name, link.replica.name)

    def all(self) -> list[Link]:
        """Those that work."""
        return [link for links in self.of_pool for link in links]

    def lost(self) -> list[str]:
        """Names of the replicas that do not."""
        with self._changed:
            return sorted(one.replica.name for one in self._lost)

    def close(self, keep: Iterable[Link] = ()) -> None:
        """Close all links but those to `keep`, and end the thread."""
        kept = set(keep)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            fresh, self._fresh = self._fresh, []
        for link in [*self.all(), *(link for _, link in fresh)]:
            if link not in kept:
                link.close()

    def stats(self) -> list[dict[str, Any]]:
        """What every working replica reports; one that does not answer is dropped."""
        reports = []
        for link in self.all():
            try:
                reports.append(link.stats())
            except LinkError as error:
                self.drop(link, error)
        return reports

    def _wake(self) -> None:
        with self._changed:
            if self._keeper is None and not self._closed:
                self._keeper = threading.Thread(target=self._keep, name="pool-links", daemon=True)
                self._keeper.start()
            self._changed.notify_all()

    def _keep(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                due = [one for one in self._lost if one.next_try <= now]
                if not due:
                    soonest = min((one.next_try - now for one in self._lost), default=None)
                    self._changed.wait(soonest)
                    continue
            for one in due:
                self._retry(one)

    def _retry(self, one: _Lost) -> None:
        try:
            link = self._connect(one.pool, one.replica)
        except LinkError:
            one.next_try = time.monotonic() + one.wait_s
            one.wait_s = min(2 * one.wait_s, LONGEST_RETRY_S)
            return
        with self._changed:
            if self._closed:
                link.close()
                return
            self._lost.remove(one)
            self._fresh.append((one.pool, link))
