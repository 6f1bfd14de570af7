"""The links of a trunk to all replicas of its pool map: which work, and a thread that brings back those that do not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from cluster.experts.pools import Pool, PoolMap, Replica
from deployments.experts.link import Link, LinkError
from deployments.experts.routes import PoolState
from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 0.2
LONGEST_RETRY_S: Final = 5.0
_CONNECTING: Final = 16

Place = tuple[str, str, str]
"""Names of a pool and of a replica, and the replica's address."""
Connect = Callable[[Pool, Replica], Link]


@dataclass(slots=True)
class _Lost:
    pool: Pool
    replica: Replica
    wait_s: float = FIRST_RETRY_S
    next_try: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class NextMap:
    """A map that could be worked by, with links to what the one in force has no link to."""

    pool_map: PoolMap
    fresh: dict[Place, Link]
    stays: frozenset[str]
    """Pools that hold what they held by the map in force: links to their replicas go on."""
    failures: tuple[str, ...]
    """Why replicas cannot be reached."""

    def states(self, alive: Collection[Place]) -> list[PoolState]:
        """How its pools will stand, where `alive` can be reached by the map in force."""
        found = []
        for pool in self.pool_map.pools:
            places = [place_of(pool, replica) for replica in pool.replicas]
            reached = any(place in self.fresh or (pool.name in self.stays and place in alive) for place in places)
            found.append(_state(pool, reached=reached))
        return found

    def close(self) -> None:
        """Nobody is going to work by it."""
        for link in self.fresh.values():
            link.close()


def place_of(pool: Pool, replica: Replica) -> Place:
    """What tells a replica of a map from others."""
    return pool.name, replica.name, replica.address


class Links:
    """Links by pool. The engine's thread uses them; only what comes back crosses over from the other thread."""

    def __init__(self, pool_map: PoolMap, connect: Connect) -> None:
        self.pool_map = pool_map
        self.of_pool: list[list[Link]] = [[] for _ in pool_map.pools]
        self.version = 0
        """Changes whenever a link comes or goes."""
        self.losses = 0
        """Links that broke or were late, since start."""
        self._connect = connect
        self._lost: list[_Lost] = []
        self._back: list[tuple[Place, Link]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._keeper: threading.Thread | None = None

    def prepare(self, pool_map: PoolMap, stays: frozenset[str], alive: Collection[Place]) -> NextMap:
        """Connect, at the same time, to those replicas of a map that are not `alive` in pools that stay as they are.

        On any thread: takes up to the time limit of a link.
        """
        fresh, failures = {}, []
        with ThreadPoolExecutor(_CONNECTING, thread_name_prefix="pool-connect") as executor:
            tries = {
                place_of(pool, replica): executor.submit(self._connect, pool, replica)
                for pool in pool_map.pools
                for replica in pool.replicas
                if not (pool.name in stays and place_of(pool, replica) in alive)
            }
            for place, attempt in tries.items():
                try:
                    fresh[place] = attempt.result()
                except LinkError as error:
                    failures.append(str(error))
        return NextMap(pool_map, fresh, stays, tuple(failures))

    def change(self, following: NextMap) -> None:
        """Work by another map from now on. Links that it does not name are closed, and their replicas not tried again."""
        self.adopt()
        left = {
            place_of(pool, link.replica): link
            for pool, links in zip(self.pool_map.pools, self.of_pool, strict=True)
            for link in links
        }
        fresh, lost = dict(following.fresh), []
        self.pool_map, self.of_pool = following.pool_map, [[] for _ in following.pool_map.pools]
        for pool, links in zip(self.pool_map.pools, self.of_pool, strict=True):
            for replica in pool.replicas:
                place = place_of(pool, replica)
                known = left.pop(place, None) if pool.name in following.stays and place not in fresh else None
                link = fresh.pop(place, known)
                if link is None:
                    lost.append(_Lost(pool, replica))
                else:
                    links.append(link)
        for link in left.values():
            link.close()
        with self._changed:
            self._lost = lost
            back, self._back = self._back, []
        for _, link in back:
            link.close()
        self.version += 1
        self._wake()

    def drop(self, link: Link, error: LinkError) -> None:
        """Leave a link out from now on, and have its replica tried again."""
        link.close()
        for pool, links in zip(self.pool_map.pools, self.of_pool, strict=True):
            if link in links:
                links.remove(link)
                self.version += 1
                self.losses += 1
                _log.warning("pool %s: %s", Safe(pool.name), Safe(str(error)))
                with self._changed:
                    self._lost.append(_Lost(pool, link.replica))
                self._wake()

    def adopt(self) -> None:
        """Take in what came back. Cheap when nothing did."""
        if not self._back:
            return
        with self._changed:
            back, self._back = self._back, []
        for place, link in back:
            for pool, links in zip(self.pool_map.pools, self.of_pool, strict=True):
                if pool.name == place[0]:
                    links.append(link)
                    self.version += 1
                    _log.info("pool %s: replica %s is back", Safe(pool.name), Safe(link.replica.name))

    def states(self) -> list[PoolState]:
        """How each pool of the map stands."""
        return [
            _state(pool, reached=bool(links)) for pool, links in zip(self.pool_map.pools, self.of_pool, strict=True)
        ]

    def alive(self) -> set[Place]:
        """Replicas that can be reached; another thread than the engine's may ask while the map stays."""
        found = zip(self.pool_map.pools, self.of_pool, strict=True)
        return {place_of(pool, link.replica) for pool, links in found for link in [*links]}

    def all(self) -> list[Link]:
        """Those that work."""
        return [link for links in self.of_pool for link in links]

    def lost(self) -> list[str]:
        """Names of the replicas that do not."""
        with self._changed:
            return sorted(one.replica.name for one in self._lost)

    def close(self) -> None:
        """Close all links, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            back, self._back = self._back, []
        for link in [*self.all(), *(link for _, link in back)]:
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
            if self._lost and self._keeper is None and not self._closed:
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
            if self._closed or not any(one is lost for lost in self._lost):
                # Another map took the place of the one that named it.
                link.close()
                return
            self._lost = [lost for lost in self._lost if lost is not one]
            self._back.append((place_of(one.pool, one.replica), link))


def _state(pool: Pool, *, reached: bool) -> PoolState:
    if reached:
        return PoolState.ALIVE
    return PoolState.DEAD if pool.replicas else PoolState.PARKED


def same_holdings(old: PoolMap, new: PoolMap) -> frozenset[str]:
    """Pools that hold the same by both maps: a link was checked against what its pool held."""
    held = {pool.name: pool.holds for pool in old.pools}
    return frozenset(pool.name for pool in new.pools if held.get(pool.name) == pool.holds)
