"""A trunk's side of its pools: sends the rows of a layer where their experts are, and adds up what comes back.

Used by the thread of the engine alone, which waits for the answers anyway. Every wait ends: a replica that breaks or is late
is left out and its rows go to another one that holds the same experts; where there is none, the next best experts stand in
(`cluster.experts.fallback`), and the rows are counted as degraded. Rows for a pool that is parked wait for a map that has a
replica of it, for a while. Where nobody can be reached the step waits, then fails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch

from cluster.experts.dispatch import spread
from cluster.experts.pools import Pool, PoolMap, PoolMapError, Replica
from deployments.experts.job import Job, PoolsUnreachableError, Sent
from deployments.experts.link import WIDTHS, Link, LinkError, Model
from deployments.experts.links import Links, NextMap, same_holdings
from deployments.experts.map_file import MapFile
from deployments.experts.parked import Parked
from deployments.experts.routes import NOBODY, Numbers, Routes, parked_pools
from deployments.experts.step_use import StepUse
from deployments.experts.trunk_files import TrunkFiles
from deployments.experts.wire import PAIR_BYTES

_POLL_S: Final = 0.005


class PoolClient:
    """Computes routed experts elsewhere. `begin`, then something else meanwhile, then `finish`; `take_step` ends a step."""

    def __init__(self, files: TrunkFiles, layers: list[int], experts: int, model: Model) -> None:
        """Raises `OSError` or `PoolMapError` where the files do not have what is needed."""
        # Not with this module: an engine that starts looks through all modules, and breaks at those that Numba brings.
        from deployments.experts import packing

        self._loops = packing
        self._file = MapFile(files.map)
        self._file.first.require(layers, experts)
        self._layers, self._experts, self._model, self._files = layers, experts, model, files
        self._secret = files.secret.read_bytes().strip()
        self._links = Links(self._file.first, self._connect)
        self._parked = Parked(files.wanted, files.wake_s)
        self._routes: Routes | None = None
        self._routes_of = -1
        self._job: Job | None = None
        self._use: StepUse | None = None
        self._next: NextMap | None = None
        self._changing = threading.Lock()
        """Held while another map takes the place of the one in force, or of one that waits for that."""
        self._pairs: Numbers = np.arange(0)
        self.degraded_rows = 0
        """Rows times layers, since start."""
        self.resent_rows = 0

    def open(self) -> None:
        """Connect. Raises `PoolsUnreachableError` if experts are still out of reach after `outage_s`; parked ones are not."""
        self._loops.warm(np.zeros((1, self._model.hidden), dtype=f"i{WIDTHS[self._model.dtype]}"))
        first = self._links.prepare(self._file.first, frozenset(), ())
        self._links.change(first)
        self._file.taken(first.pool_map.version)
        self._file.watch(self._consider)
        until = time.monotonic() + self._files.outage_s
        while self._current().out_of_reach():
            if time.monotonic() > until:
                self.close()
                raise PoolsUnreachableError("experts cannot be reached: " + "; ".join(first.failures))
            time.sleep(_POLL_S)
            self._look()

    def begin(
        self,
        layer: int,
        x: torch.Tensor,
        weights: torch.Tensor,
        experts: torch.Tensor,
        logits: Callable[[], torch.Tensor],
    ) -> None:
        """Send the rows `x` (rows, hidden) of a layer to their `experts` (rows, k) int32, with `weights` float32.

        `logits` is called only if experts are out of reach: the router's scores (rows, experts of the layer).
        """
        if self._use is None or self._use.rows != len(x):
            self._use = StepUse(len(x))
        whole = torch.int16 if x.dtype.itemsize == 2 else torch.int32
        job = Job(layer, x, x.view(whole).numpy(), weights.numpy(), experts.numpy(), logits, self._use)
        self._look()
        if len(self._pairs) != experts.numel():
            self._pairs = np.arange(experts.numel())
        self._dispatch(job, self._pairs)
        self._job = job

    def finish(self) -> torch.Tensor:
        """What the experts say of the rows of the last `begin` (rows, hidden). Raises `PoolsUnreachableError`."""
        job, self._job = self._job, None
        if job is None:
            raise RuntimeError("nothing was begun")
        begun = time.perf_counter()
        while True:
            for sent in job.sent:
                self._gather(job, sent)
            job.sent.clear()
            if not job.failed:
                break
            again = np.sort(np.concatenate(job.failed))
            job.failed.clear()
            rows = np.unique(again // job.experts.shape[1])
            self.resent_rows += len(rows)
            job.use.again(rows)
            self._dispatch(job, again)
        job.use.wait_s += time.perf_counter() - begun
        job.use.ended_s = time.time()
        if job.total is None:
            return torch.zeros_like(job.x)
        return torch.from_numpy(job.total).to(job.x.dtype)

    def take_step(self) -> StepUse | None:
        """What pools did since it was last called, which has to be after each step; None: nothing."""
        use, self._use = self._use, None
        return use

    def report(self) -> dict[str, Any]:
        """The map in force, why a newer one is not, replicas, losses, and what the replicas report; between two steps."""
        self._look()
        return {
            "map_version": self._links.pool_map.version,
            "refused": self._file.refused,
            "replicas": self._links.stats(),
            "lost": self._links.lost(),
            "losses": self._links.losses,
            "degraded_rows": self.degraded_rows,
            "resent_rows": self.resent_rows,
        }

    def close(self) -> None:
        """Close all links."""
        self._file.close()
        self._links.close()
        if self._next is not None:
            self._next.close()

    def _connect(self, pool: Pool, replica: Replica) -> Link:
        return Link(replica, pool.holds, self._model, self._secret, self._files.answer_s)

    def _consider(self, pool_map: PoolMap) -> None:
        """Connect to what a newer map has, on the thread of the file. Raises `PoolMapError`; the old one is then kept to."""
        pool_map.require(self._layers, self._experts)
        while not self._prepared(pool_map):
            pass

    def _prepared(self, pool_map: PoolMap) -> bool:
        """False: meanwhile another map came into force, and it is to be seen what this one needs beside that."""
        with self._changing:
            force, states, alive = self._links.pool_map, self._links.states(), self._links.alive()
            newest = force if self._next is None else self._next.pool_map
        if pool_map == newest:
            return True
        if pool_map.version <= newest.version:
            raise PoolMapError(f"version {pool_map.version} is not after {newest.version}, which is in force")
        following = self._links.prepare(pool_map, same_holdings(force, pool_map), alive)
        lacking = set(Routes(pool_map, following.states(alive), self._experts).out_of_reach())
        # What cannot be reached anyway is no reason to keep to a map that is no better.
        lacking -= set(Routes(force, states, self._experts).out_of_reach())
        with self._changing:
            if lacking or self._links.pool_map is not force:
                unused: NextMap | None = following
            else:
                unused, self._next = self._next, following
        if unused is not None:
            unused.close()
        if lacking:
            layer, expert = min(lacking)
            raise PoolMapError(
                f"{len(lacking)} experts cannot be reached by the new map, as expert {expert} of layer {layer}: "
                + "; ".join(following.failures)
            )
        return unused is not following

    def _look(self) -> None:
        """Take on what other threads have brought. Cheap when it is nothing."""
        self._links.adopt()
        if self._next is not None:
            with self._changing:
                following, self._next = self._next, None
                if following is not None:
                    self._links.change(following)
                    self._parked.look(following.pool_map)
                    self._file.taken(following.pool_map.version)

    def _current(self) -> Routes:
        if self._routes is None or self._routes_of != self._links.version:
            self._routes = Routes(self._links.pool_map, self._links.states(), self._experts)
            self._routes_of = self._links.version
        return self._routes

    def _dispatch(self, job: Job, pairs: Numbers) -> None:
        """Send `pairs` (places in the flat list of rows and experts, ascending)."""
        pools = self._current().pools(job.layer, job.experts.reshape(-1)[pairs])
        if pools.min() <= NOBODY:
            begun = time.perf_counter()
            pairs, pools = self._all_reached(job, pairs)
            job.use.wait_s += time.perf_counter() - begun
        order, starts = self._loops.by_pool(pools, len(self._links.of_pool))
        sorted_pairs, bounds = pairs[order], starts.tolist()
        for pool, (start, end) in enumerate(pairwise(bounds)):
            if start < end:
                self._to_pool(job, pool, sorted_pairs[start:end])

    def _to_pool(self, job: Job, pool: int, pairs: Numbers) -> None:
        links, name = self._links.of_pool[pool], self._links.pool_map.pools[pool].name
        if len(links) == 1:
            self._send(job, links[0], name, pairs)
            return
        if not links:
            job.failed.append(pairs)
            return
        # The first pair of each row.
        starts = np.diff(pairs // job.experts.shape[1], prepend=-1).nonzero()[0]
        taken = 0
        shares = spread(len(starts), [link.candidate() for link in links]).shares
        chosen = [links[share.candidate] for share in shares]
        for link, share in zip(chosen, shares, strict=True):
            end = starts[taken + share.rows] if taken + share.rows < len(starts) else len(pairs)
            self._send(job, link, name, pairs[starts[taken] : end])
            taken += share.rows

    def _send(self, job: Job, link: Link, pool: str, pairs: Numbers) -> None:
        count, k = len(pairs), job.experts.shape[1]
        # As much as it can be at most.
        link.room(count * (PAIR_BYTES + job.raw.shape[1] * job.raw.itemsize))
        rows = self._loops.pack(job.raw, job.experts.reshape(-1), job.weights.reshape(-1), pairs, k, link.body)
        try:
            link.request(job.layer, len(rows), count)
        except LinkError as error:
            self._links.drop(link, error)
            job.failed.append(pairs)
            return
        job.sent.append(Sent(link, pool, pairs, rows))

    def _gather(self, job: Job, sent: Sent) -> None:
        try:
            part = sent.link.reply(len(sent.rows))
        except LinkError as error:
            self._links.drop(sent.link, error)
            job.failed.append(sent.pairs)
            return
        fresh = job.total is None and len(sent.rows) == len(job.raw)
        if job.total is None:
            # Where all rows come, nothing has to be zero before.
            job.total = np.empty(job.raw.shape, np.float32) if fresh else np.zeros(job.raw.shape, np.float32)
        counts = job.use.counts(sent.pool, sent.link.replica.name)
        self._loops.add(job.total, part, sent.rows, fresh, counts, sent.pairs, job.experts.shape[1])

    def _all_reached(self, job: Job, pairs: Numbers) -> tuple[Numbers, Numbers]:
        """The pairs to be sent in place of `pairs`, some of which nobody can compute now, and their pools.

        Waits for parked pools `wake_s` at most, and `outage_s` at most while no expert of the layer can be reached.
        """
        begun = time.monotonic()
        while True:
            self._look()
            routes = self._current()
            pools = routes.pools(job.layer, job.experts.reshape(-1)[pairs])
            if pools.min() > NOBODY:
                return pairs, pools
            parked = {self._links.pool_map.pools[number].name for number in parked_pools(pools)}
            for name in parked:
                self._parked.want(name)
            if not self._parked.waits_for(parked, begun):
                if routes.reaches_any(job.layer):
                    break
                if time.monotonic() - begun > self._files.outage_s:
                    raise PoolsUnreachableError(
                        f"no expert of layer {job.layer} could be reached for {self._files.outage_s:g} s"
                    )
            time.sleep(_POLL_S)
        pairs, rows = job.stand_in(pairs, routes)
        self.degraded_rows += rows
        return pairs, routes.pools(job.layer, job.experts.reshape(-1)[pairs])
