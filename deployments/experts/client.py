"""A trunk's side of its pools: sends the rows of a layer where their experts are, and adds up what comes back.

Used by the thread of the engine alone, which waits for the answers anyway. Every wait ends: a replica that breaks or is late
is left out and its rows go to another one that holds the same experts; where there is none, the next best experts stand in
(`cluster.experts.fallback`), and the rows are counted as degraded. Where nobody can be reached the step waits for a while,
then fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.experts.dispatch import spread
from cluster.experts.fallback import substitute
from cluster.experts.pools import PoolMap, PoolMapError
from deployments.experts.link import Link, LinkError, Model
from deployments.experts.links import Links
from deployments.experts.routes import NOBODY, Numbers, Routes
from deployments.experts.wire import PAIR_BYTES

_POLL_S = 0.005


class PoolsUnreachableError(Exception):
    """No expert of a layer could be reached in time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a trunk waits."""

    answer_s: float = 10.0
    """For the answer of one replica to one batch."""
    outage_s: float = 20.0
    """For any replica that holds an expert of the layer, before the step fails."""


@dataclass(slots=True)
class _Sent:
    """A batch that a replica works on."""

    link: Link
    pairs: Numbers
    """Places in the flat list of rows and experts."""
    rows: Numbers


@dataclass(slots=True)
class _Job:
    """One layer of one step."""

    layer: int
    x: torch.Tensor
    raw: npt.NDArray[Any]
    """`x` as numbers that NumPy knows, of the same width."""
    weights: npt.NDArray[np.float32]
    experts: npt.NDArray[np.int32]
    logits: Callable[[], torch.Tensor]
    sent: list[_Sent] = field(default_factory=list)
    failed: list[Numbers] = field(default_factory=list)
    total: torch.Tensor | None = None
    """Sum so far, float32."""


class PoolClient:
    """Computes routed experts elsewhere. `begin`, then something else meanwhile, then `finish`."""

    def __init__(
        self, pool_map: PoolMap, layers: list[int], experts: int, model: Model, secret: bytes, limits: Limits
    ) -> None:
        pool_map.require(layers, experts)
        self._layers, self._experts = layers, experts
        self._model, self._secret, self._limits = model, secret, limits
        self._links = Links(pool_map, model, secret, limits.answer_s)
        self._routes: Routes | None = None
        self._routes_of = -1
        self._job: _Job | None = None
        self.degraded: dict[int, int] = {}
        """Row of the current step to the layers in which other experts stood in. Whoever counts them empties it."""
        self.degraded_rows = 0
        """Rows times layers, since start."""
        self.resent_rows = 0

    def open(self) -> None:
        """Connect. Raises `PoolsUnreachableError` if experts are still out of reach after `outage_s`."""
        failures = self._links.open()
        until = time.monotonic() + self._limits.outage_s
        while not self._current().complete:
            if time.monotonic() > until:
                raise PoolsUnreachableError("experts cannot be reached: " + "; ".join(failures))
            time.sleep(_POLL_S)
            self._links.adopt()

    def replace(self, pool_map: PoolMap) -> None:
        """Work by another map from now on; between two steps. Raises `PoolMapError`, and then goes on with the old one."""
        pool_map.require(self._layers, self._experts)
        old, new = self._links, Links(pool_map, self._model, self._secret, self._limits.answer_s)
        if pool_map.version <= old.pool_map.version:
            raise PoolMapError(f"version {pool_map.version} is not after {old.pool_map.version}, which is in force")
        held = {pool.name: pool.holds for pool in old.pool_map.pools}
        # A link was checked against what its pool held; it stays where that is still so.
        same = [number for number, pool in enumerate(pool_map.pools) if held.get(pool.name) == pool.holds]
        names = {(r.name, r.address) for number in same for r in pool_map.pools[number].replicas}
        kept = [link for link in old.all() if (link.replica.name, link.replica.address) in names]
        failures = new.open(kept)
        if not Routes(pool_map, [bool(links) for links in new.of_pool], self._experts).complete:
            new.close(kept)
            raise PoolMapError("some experts cannot be reached by the new map: " + "; ".join(failures))
        self._links, self._routes = new, None
        old.close(kept)

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
        whole = torch.int16 if x.dtype.itemsize == 2 else torch.int32
        job = _Job(layer, x, x.view(whole).numpy(), weights.numpy(), experts.numpy(), logits)
        self._links.adopt()
        self._dispatch(job, None)
        self._job = job

    def finish(self) -> torch.Tensor:
        """What the experts say of the rows of the last `begin` (rows, hidden). Raises `PoolsUnreachableError`."""
        job, self._job = self._job, None
        if job is None:
            raise RuntimeError("nothing was begun")
        while True:
            for sent in job.sent:
                self._gather(job, sent)
            job.sent.clear()
            if not job.failed:
                break
            again = np.concatenate(job.failed)
            job.failed.clear()
            self._dispatch(job, again)
        if job.total is None:
            return torch.zeros_like(job.x)
        return job.total.to(job.x.dtype)

    def report(self) -> dict[str, Any]:
        """Replicas, losses and degraded rows, and what the replicas report; between two steps."""
        self._links.adopt()
        return {
            "map_version": self._links.pool_map.version,
            "replicas": self._links.stats(),
            "lost": self._links.lost(),
            "losses": self._links.losses,
            "degraded_rows": self.degraded_rows,
            "resent_rows": self.resent_rows,
        }

    def close(self) -> None:
        """Close all links."""
        self._links.close()

    def _current(self) -> Routes:
        if self._routes is None or self._routes_of != self._links.version:
            alive = [bool(links) for links in self._links.of_pool]
            self._routes, self._routes_of = Routes(self._links.pool_map, alive, self._experts), self._links.version
        return self._routes

    def _dispatch(self, job: _Job, again: Numbers | None) -> None:
        """Send pairs: all, or those of `again`, whose replica failed."""
        flat = job.experts.reshape(-1)
        if again is None:
            pairs, pools = None, self._current().pools(job.layer, flat)
        else:
            again.sort()
            self.resent_rows += len(np.unique(again // job.experts.shape[1]))
            pairs, pools = again, self._current().pools(job.layer, flat[again])
        if pools.min() == NOBODY:
            pairs = self._substitute(job, pools, pairs)
            pools = self._current().pools(job.layer, job.experts.reshape(-1)[pairs])
        used = np.bincount(pools).nonzero()[0].tolist()
        for pool in used:
            mine = (pools == pool).nonzero()[0]
            self._to_pool(job, pool, mine if pairs is None else pairs[mine])

    def _to_pool(self, job: _Job, pool: int, pairs: Numbers) -> None:
        links = self._links.of_pool[pool]
        if len(links) == 1:
            self._send(job, links[0], pairs)
            return
        if not links:
            job.failed.append(pairs)
            return
        starts = _changes(pairs // job.experts.shape[1]).nonzero()[0]
        taken = 0
        shares = spread(len(starts), [link.candidate() for link in links]).shares
        chosen = [links[share.candidate] for share in shares]
        for link, share in zip(chosen, shares, strict=True):
            end = starts[taken + share.rows] if taken + share.rows < len(starts) else len(pairs)
            self._send(job, link, pairs[starts[taken] : end])
            taken += share.rows

    def _send(self, job: _Job, link: Link, pairs: Numbers) -> None:
        count, hidden = len(pairs), job.raw.shape[1]
        k = job.experts.shape[1]
        if len(job.raw) == 1:
            rows = local = np.zeros(count, dtype=np.int64)
            rows = rows[:1]
        else:
            row_of = pairs // k
            first = _changes(row_of)
            rows, local = row_of[first], first.cumsum() - 1
        size = len(rows) * hidden * job.raw.itemsize
        room = link.room(size + count * PAIR_BYTES)
        x = np.frombuffer(room, dtype=job.raw.dtype, count=len(rows) * hidden).reshape(len(rows), hidden)
        if len(rows) == len(job.raw):
            x[:] = job.raw
        else:
            np.take(job.raw, rows, axis=0, out=x, mode="clip")
        numbers = np.frombuffer(room, dtype="<i4", count=2 * count, offset=size)
        numbers[:count] = local
        numbers[count:] = job.experts.reshape(-1)[pairs]
        np.frombuffer(room, dtype="<f4", count=count, offset=size + 8 * count)[:] = job.weights.reshape(-1)[pairs]
        try:
            link.request(job.layer, len(rows), count, size + count * PAIR_BYTES)
        except LinkError as error:
            self._links.drop(link, error)
            job.failed.append(pairs)
            return
        job.sent.append(_Sent(link, pairs, rows))

    def _gather(self, job: _Job, sent: _Sent) -> None:
        rows, hidden = len(sent.rows), job.raw.shape[1]
        try:
            body = sent.link.reply(rows, rows * hidden * job.raw.itemsize)
        except LinkError as error:
            self._links.drop(sent.link, error)
            job.failed.append(sent.pairs)
            return
        part = torch.frombuffer(body, dtype=job.x.dtype).view(rows, hidden)
        if job.total is None and rows == len(job.raw):
            # A copy: the buffer is the link's.
            job.total = part.float() if job.x.dtype != torch.float32 else part.clone()
            return
        if job.total is None:
            job.total = torch.zeros(job.x.shape, dtype=torch.float32)
        if rows == len(job.raw):
            job.total += part
        else:
            job.total.index_add_(0, torch.from_numpy(sent.rows), part.float())

    def _substitute(self, job: _Job, pools: Numbers, pairs: Numbers | None) -> Numbers:
        """Give rows whose experts are out of reach others, and return the pairs that are to be sent now.

        Waits while no expert of the layer can be reached, `outage_s` at most.
        """
        k = job.experts.shape[1]
        pairs = np.arange(job.experts.size) if pairs is None else pairs
        until = time.monotonic() + self._limits.outage_s
        while not any(self._current().reaches(job.layer, expert) for expert in range(self._experts)):
            if time.monotonic() > until:
                raise PoolsUnreachableError(
                    f"no expert of layer {job.layer} could be reached for {self._limits.outage_s:g} s"
                )
            time.sleep(_POLL_S)
            self._links.adopt()
        routes = self._current()
        pools = routes.pools(job.layer, job.experts.reshape(-1)[pairs])
        rows = np.unique(pairs[pools == NOBODY] // k)
        job.experts, job.weights = job.experts.copy(), job.weights.copy()
        logits = job.logits().float()
        for row in rows.tolist():
            found = substitute(
                job.experts[row].tolist(),
                job.weights[row].tolist(),
                logits[row].tolist(),
                lambda expert: routes.reaches(job.layer, expert),
            )
            if found is None:
                raise PoolsUnreachableError(f"no expert of layer {job.layer} can be reached")
            # Fewer experts than before: the first one takes the free places, with no weight.
            free = k - len(found.experts)
            job.experts[row] = [*found.experts, *[found.experts[0]] * free]
            job.weights[row] = [*found.weights, *[0.0] * free]
            self.degraded[row] = self.degraded.get(row, 0) + 1
        self.degraded_rows += len(rows)
        if job.total is not None and len(rows):
            # What was summed for them was weighted with experts that are gone.
            job.total[torch.from_numpy(rows)] = 0
        others = pairs[~np.isin(pairs // k, rows)]
        return np.sort(np.concatenate([others, (rows[:, None] * k + np.arange(k)).reshape(-1)]))


def _changes(numbers: Numbers) -> npt.NDArray[np.bool_]:
    """Where a number is another than the one before it; the first one is."""
    first = np.empty(len(numbers), dtype=np.bool_)
    first[0] = True
    np.not_equal(numbers[1:], numbers[:-1], out=first[1:])
    return first
