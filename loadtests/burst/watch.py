"""What a cluster says of its pools twice a second while a run goes on. It is read after the run: parsing takes CPU."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cluster.experts.pools_view import ChangeView, PoolsView, PoolView
from loadtests.client import Connection
from loadtests.http1 import encode_request
from loadtests.targets import Target

EVERY_S: Final = 0.5
TIMEOUT_S: Final = 5.0
EXPERTS: Final = "/v1/experts"
PRECISION: Final = "/v1/precision"


class WatchError(RuntimeError):
    """The cluster does not say what is needed."""


@dataclass(frozen=True, slots=True)
class Look:
    """The two answers as they came, seconds after the run's beginning."""

    at_s: float
    experts: bytes
    precision: bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """How the engine and its pools stood."""

    at_s: float
    """When it was asked, seconds after the run's beginning."""
    age_s: float
    """How old what is told of the pools was then."""
    running: int
    waiting: int
    """In the engine, and in front of it."""
    pools: tuple[PoolView, ...]
    changes: tuple[ChangeView, ...]
    moved_pairs: int
    layers: int
    experts: int
    top_k: int

    @property
    def told_at_s(self) -> float:
        """Since when the pools stand so, at the latest."""
        return self.at_s - self.age_s


class Watch:
    """Looks at a cluster over two connections of its own."""

    def __init__(self, target: Target, model: str, began: float) -> None:
        self.looks: list[Look] = []
        self.missed = 0
        """Looks that were not answered."""
        self._model, self._began = model, began
        self._connections = {path: Connection(target) for path in (EXPERTS, PRECISION)}
        headers = () if target.key is None else (("authorization", f"Bearer {target.key}"),)
        self._requests = {path: encode_request("GET", path, target.authority, headers) for path in (EXPERTS, PRECISION)}

    def close(self) -> None:
        """End it."""
        for connection in self._connections.values():
            connection.close()

    async def now(self) -> Sample:
        """One sample. Raises `WatchError`."""
        return sample_of(await self._look(), self._model)

    async def go_on(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                self.looks.append(await self._look())
            except WatchError:
                self.missed += 1
            await asyncio.sleep(EVERY_S)

    def samples(self) -> tuple[Sample, ...]:
        """All looks that can be read; those that cannot count as missed."""
        found = []
        for look in self.looks:
            try:
                found.append(sample_of(look, self._model))
            except WatchError:
                self.missed += 1
        return tuple(found)

    async def _look(self) -> Look:
        at_s = time.perf_counter() - self._began
        return Look(at_s, await self._get(EXPERTS), await self._get(PRECISION))

    async def _get(self, path: str) -> bytes:
        exchange = await self._connections[path].send(self._requests[path], TIMEOUT_S)
        if exchange.failure is not None or exchange.status != 200:
            raise WatchError(f"{path} answers {exchange.failure or exchange.status}")
        return b"".join(data for _, data in exchange.arrivals)


@contextlib.asynccontextmanager
async def watching(watch: Watch) -> AsyncIterator[None]:
    """Looks as long as the block runs."""
    task = asyncio.create_task(watch.go_on())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def sample_of(look: Look, model: str) -> Sample:
    """What the two answers say. Raises `WatchError`."""
    try:
        told: dict[str, Any] = json.loads(look.experts)["models"][model]
        view = msgspec.convert(told["pools"], PoolsView)
        replicas = json.loads(look.precision)["models"][model]["replicas"]
        return Sample(
            at_s=look.at_s,
            age_s=float(told["pools"]["age_s"]),
            running=sum(int(one["running"]) for one in replicas),
            waiting=sum(int(one["waiting"]) for one in replicas),
            pools=view.pools,
            changes=view.changes,
            moved_pairs=view.moved_pairs,
            layers=view.layers,
            experts=view.experts,
            top_k=int(told["shape"]["top_k"]),
        )
    except (LookupError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise WatchError(f"the cluster does not tell how its pools stand: {error!r}") from None
