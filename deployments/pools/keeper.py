"""Knows all pools of a model: has them scaled by heat, moves experts, and tells trunks where they are. Free of Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from cluster.experts.balancing import PoolBooks, Report, includes, one_home, placement_of
from cluster.experts.load import ExpertShape
from cluster.experts.moving import Mover, Stage
from cluster.experts.pools import Holding, Pool, PoolMap, Replica
from cluster.experts.pools_view import MAX_CHANGES, ChangeView, PoolsView, PoolView, ReplicaView
from deployments.pools.checkpoint import expert_dtype
from deployments.pools.holdings import Holdings
from deployments.pools.spec import PoolsSpec
from deployments.pools.trunks import Trunks
from deployments.telemetry.log_safety import Safe

if TYPE_CHECKING:
    from cluster.experts.placement import Balance
    from cluster.experts.replication_state import Decision
    from deployments.experts.source import ExpertSource

_log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Seconds between two decisions."""
LISTEN_S = 10.0
"""Seconds within which one that was started anew should have heard of all pools."""
FOLLOW_S = 0.5
"""The same for one whose engine has not taken on the map that it knows."""
SCALE_S = 10.0
"""Seconds that Serve may take to be told of another number of replicas."""
ASK_S = 5.0
"""Seconds that a trunk's question for a newer map is kept open."""


Scale = Callable[[str, int], Awaitable[None]]
"""Has a pool (name) go to so many replicas."""


class PoolsKeeper:
    """Of one model. Trunks and pools go on without it while it is being replaced."""

    def __init__(self, spec: PoolsSpec, checkpoint: ExpertSource, targets: Mapping[str, int], scale: Scale) -> None:
        """`targets`: replicas that each pool is to have already, which is more than the least after a start anew."""
        self._spec = spec
        self._scale = scale
        self._layers = checkpoint.layers
        shape = ExpertShape(len(checkpoint.layers), checkpoint.experts, 1)
        width = {"float32": 4}.get(expert_dtype(spec), 2)
        pair_bytes = 3 * checkpoint.shape.hidden * checkpoint.shape.intermediate * width
        self._books = PoolBooks(spec.pools, shape, pair_bytes, spec.names)
        for name, replicas in targets.items():
            self._books.found(name, replicas)
        self._acknowledged = {name: self._books.target(name) for name in spec.names}
        """Replicas that Serve was told to have, by pool."""
        self._holdings = Holdings(self._layers)
        self._mover = Mover(self._books.placement)
        self._trunks = Trunks(time.time())
        self._changes: deque[ChangeView] = deque(maxlen=MAX_CHANGES)
        self._lacks: dict[str, str] = {}
        self._serving: dict[str, tuple[Report, ...]] = {}
        """Replicas by pool, as trunks are told of them."""
        self._began_s = time.monotonic()
        self._balance: Balance | None = None
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to decide."""
        self._looking = asyncio.get_running_loop().create_task(self._look_after())

    def stop(self) -> None:
        """End it."""
        if self._looking is not None:
            self._looking.cancel()

    def check(self) -> None:
        """Raises `RuntimeError` once nobody decides any more."""
        if self._looking is None or self._looking.done():
            raise RuntimeError(f"nobody decides on the pools of model {self._spec.model!r} any more")

    # What replicas of pools call.

    async def told(self, report: Report) -> Holding:
        """Take in the report of a replica; returns what it is to hold."""
        now = time.monotonic()
        before = self._books.known.get(report.replica)
        self._books.take(report, now)
        if before is None or before.report.holds != report.holds or self._mover.stage is not Stage.RESTS:
            self._publish(now)
        if not self._trunks.version:
            # What trunks work by is not known yet, so nothing that is held may go.
            return report.holds
        return self._holdings.of(self._mover.held)[self._spec.names.index(report.pool)]

    async def leaving(self, replica: str) -> bool:
        """A replica is about to stop. Returns whether trunks do without it: they keep the last one of a pool until they end."""
        goes = self._books.leave(replica)
        self._publish(time.monotonic())
        return goes

    # What trunks call.

    async def map(self, trunk: str, node: str, known: int, works_by: int) -> str | None:
        """The pool map for a trunk on a node as JSON, once it is newer than `known`; None: nothing new within `ASK_S`.

        `works_by`: the version that the trunk's engine has taken on.
        """
        self._trunks.asks(trunk, works_by, time.monotonic())
        # Until the engine has followed, whoever moves experts waits for its word.
        found = await self._trunks.newer(known, ASK_S if works_by >= known else FOLLOW_S)
        self._trunks.asks(trunk, works_by, time.monotonic())
        return None if found is None else self._map_for(node, found)

    async def invoked(self, pool: str) -> None:
        """Tokens of a trunk wait for a parked pool."""
        self._books.asked(pool, time.monotonic())

    # What the ingress calls.

    async def view(self) -> bytes:
        """`PoolsView` as JSON."""
        now = time.monotonic()
        books = self._books
        per_s = books.pool_per_s(now)
        pools = tuple(
            PoolView(
                name=name,
                experts=int(self._mover.placement[number].sum()),
                target=books.target(name),
                pairs_per_s=round(per_s[name], 1),
                capacity_pairs_per_s=round(books.capacity(name), 1),
                replicas=tuple(self._replica(one.report, one.pairs_per_s) for one in books.answering(name, now)),
                lacks=self._lacks.get(name, ""),
            )
            for number, name in enumerate(self._spec.names)
        )
        view = PoolsView(
            version=self._trunks.version,
            layers=books.shape.layers,
            experts=books.shape.experts,
            memory_bytes=books.memory_bytes,
            pools=pools,
            changes=tuple(self._changes),
            moved_pairs=self._mover.moved_pairs,
            listens=not self._trunks.version and now - self._began_s < LISTEN_S,
        )
        return msgspec.json.encode(view)

    async def _look_after(self) -> None:
        if self._spec.pools.uneven is not None and len(self._spec.names) > 1:
            self._balance = await asyncio.to_thread(_balancing)
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look(time.monotonic())
            except Exception as error:  # noqa: BLE001 - Serve's controller may be away for a moment
                _log.warning("the pools could not be looked after: %s: %s", type(error).__name__, Safe(str(error)))

    async def _look(self, now: float) -> None:
        self._books.forget_silent(now)
        self._publish(now)
        if not self._trunks.version:
            return
        # While experts move, what pools hold is between two placements, and more memory is in use than the policy knows of.
        balance = self._balance if self._mover.stage is Stage.RESTS else None
        decision = await asyncio.to_thread(self._books.decide, now, balance)
        self._lacks = {one.pool: one.reason for one in decision.blocked}
        self._note(decision)
        await self._carry_out()
        if decision.rearrangement is not None:
            _log.info("experts change their pools: %d pairs", len(decision.rearrangement.moves))
            self._mover.begin(decision.rearrangement.placement, now)

    def _note(self, decision: Decision) -> None:
        for change in decision.changes:
            _log.info("pool %s: %d to %d replicas: %s", change.pool, change.before, change.after, Safe(change.reason))
            self._changes.append(
                ChangeView(change.pool, change.before, change.after, change.cause, change.reason, time.time())
            )

    async def _carry_out(self) -> None:
        """Tell Serve of what it does not know yet; what fails is tried again at the next look."""
        for pool, known in self._acknowledged.items():
            target = self._books.target(pool)
            if target == known:
                continue
            try:
                async with asyncio.timeout(SCALE_S):
                    await self._scale(pool, target)
                self._acknowledged[pool] = target
            except Exception as error:  # noqa: BLE001 - whatever it was, Serve does not know yet
                self._lacks[pool] = f"Ray Serve could not be told to have {target} replicas ({type(error).__name__})"
                _log.warning("pool %s: Serve was not told: %s", Safe(pool), type(error).__name__)

    def _publish(self, now: float) -> None:
        """A newer map, if something changed and enough is known for the first one."""
        books, names = self._books, self._spec.names
        if not self._trunks.version and not self._begin(now):
            return
        loaded = all(
            includes(one.report.holds, held)
            for name, held in zip(names, self._holdings.of(self._mover.held), strict=True)
            for one in books.serving(name)
        )
        if self._mover.advance(now, loaded=loaded, told=self._trunks.all_know(now)):
            books.placement = self._mover.placement
        serving: dict[str, tuple[Report, ...]] = {}
        for name, needed in zip(names, self._holdings.of(self._mover.placement), strict=True):
            serving[name] = tuple(one.report for one in books.serving(name) if includes(one.report.holds, needed))
            if not serving[name] and books.target(name):
                # To trunks a pool without replicas is parked, and worth waiting for. This one is dead: they find that out.
                serving[name] = self._serving.get(name, ())
        self._serving = serving
        self._trunks.publish(_signature(serving, self._mover.moved_pairs), serving)
        self._note_reached(serving)

    def _begin(self, now: float) -> bool:
        """Take pools for what they hold, once all that are to have a replica have one; returns whether that is so.

        Where this one was started anew, experts may have moved since the beginning, or be between two pools.
        """
        known: list[Holding | None] = []
        for name in self._spec.names:
            holdings = [one.report.holds for one in self._books.serving(name)]
            if not holdings and self._books.target(name):
                return False
            known.append(_common(holdings) if holdings else None)
        held = placement_of(known, self._layers, self._books.shape.experts)
        self._mover.resume(one_home(held), held, now)
        self._books.placement = self._mover.placement
        return True

    def _note_reached(self, serving: dict[str, tuple[Report, ...]]) -> None:
        """Changes whose replicas trunks are told of by now."""
        for number, change in enumerate(self._changes):
            if change.took_s is None and len(serving[change.pool]) == change.after == self._books.target(change.pool):
                self._changes[number] = replace(change, took_s=round(time.time() - change.at_s, 2))

    def _map_for(self, node: str, serving: dict[str, tuple[Report, ...]]) -> str:
        pools, holdings = [], self._holdings.of(self._mover.placement)
        for number, name in enumerate(self._spec.names):
            replicas = tuple(
                Replica(one.replica, one.unix if one.unix and one.node == node else one.tcp) for one in serving[name]
            )
            pools.append(Pool(name, replicas, holdings[number]))
        return PoolMap(self._trunks.version, tuple(pools)).to_json()

    @staticmethod
    def _replica(report: Report, pairs_per_s: float) -> ReplicaView:
        return ReplicaView(
            name=report.replica,
            node=report.node,
            pairs=int(report.tokens.sum()),
            pairs_per_s=round(pairs_per_s, 1),
            queue_rows=report.queue_rows,
            weight_bytes=report.weight_bytes,
            overhead_bytes=report.overhead_bytes,
        )


def _common(holdings: list[Holding]) -> Holding:
    """What all of them have."""
    first, *others = holdings
    return {
        layer: experts.intersection(*(o.get(layer, frozenset()) for o in others)) for layer, experts in first.items()
    }


def _signature(serving: dict[str, tuple[Report, ...]], moved_pairs: int) -> object:
    """Equal as long as trunks have nothing new to learn."""
    return moved_pairs, {name: [(one.replica, one.unix, one.tcp) for one in some] for name, some in serving.items()}


def _balancing() -> Balance:
    """vLLM's algorithm, loaded: that takes seconds, which the first decision must not wait for."""
    from deployments.engines.vllm_balancing import balance, policy

    policy()
    return balance
