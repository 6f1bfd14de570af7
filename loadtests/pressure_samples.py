"""What a cluster says of itself twice a second while the pressure scenario runs. It is read after the run: parsing takes CPU."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from cluster.telemetry.metric_table import ADMISSION_WAITING, ENGINE_DEATHS, Metric
from loadtests.client import Connection
from loadtests.http1 import encode_request
from loadtests.targets import Target

EVERY_S: Final = 0.5
TIMEOUT_S: Final = 5.0
PRECISION: Final = "/v1/precision"
METRICS: Final = "/metrics"


class SampleError(RuntimeError):
    """The cluster does not say what is needed."""


@dataclass(frozen=True, slots=True)
class ModelSample:
    """One model, its replicas added up."""

    level: int
    """The highest of its replicas."""
    level_name: str
    kv_precision: str
    kv_usage: float
    kv_blocks: int
    kv_tokens: int
    running: int
    waiting: int
    """Inside the engine."""
    queued: int
    """In the ingress."""
    preemptions: int
    forced_preemptions: int
    recomputed_tokens: int
    switches: int
    switching: bool

    @property
    def at_rest(self) -> bool:
        """Level 0 and nothing to do."""
        return self.level == 0 and not (self.running or self.waiting or self.queued or self.switching)


@dataclass(frozen=True, slots=True)
class Sample:
    """All models at one time, seconds after the run's beginning."""

    at_s: float
    models: dict[str, ModelSample]
    engine_deaths: int


@dataclass(frozen=True, slots=True)
class Look:
    """The two answers as they came."""

    at_s: float
    precision: bytes
    metrics: bytes


class Observer:
    """Looks at a cluster over two connections of its own."""

    def __init__(self, target: Target) -> None:
        self._connections = {path: Connection(target) for path in (PRECISION, METRICS)}
        headers = () if target.key is None else (("authorization", f"Bearer {target.key}"),)
        self._requests = {path: encode_request("GET", path, target.authority, headers) for path in (PRECISION, METRICS)}
        self.looks: list[Look] = []
        self.missed = 0
        """Looks that were not answered."""
        self._began = time.perf_counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for connection in self._connections.values():
            connection.close()
        # The transports close in the next turn of the loop.
        await asyncio.sleep(0)

    async def watch(self, began: float) -> None:
        """Look until cancelled; times count from `began`."""
        self.looks.clear()
        self.missed, self._began = 0, began
        while True:
            try:
                self.looks.append(await self._look())
            except SampleError:
                self.missed += 1
            await asyncio.sleep(EVERY_S)

    async def now(self) -> Sample:
        """One sample. Raises `SampleError`."""
        return sample_of(await self._look())

    async def _look(self) -> Look:
        at_s = time.perf_counter() - self._began
        return Look(at_s, await self._get(PRECISION), await self._get(METRICS))

    async def _get(self, path: str) -> bytes:
        exchange = await self._connections[path].send(self._requests[path], TIMEOUT_S)
        if exchange.failure is not None or exchange.status != 200:
            raise SampleError(f"{path} answers {exchange.failure or exchange.status}")
        return b"".join(data for _, data in exchange.arrivals)


@contextlib.asynccontextmanager
async def watching(observer: Observer, began: float) -> AsyncIterator[None]:
    """Looks as long as the block runs."""
    task = asyncio.create_task(observer.watch(began))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def sample_of(look: Look) -> Sample:
    """What the two answers say. Raises `SampleError`."""
    text = look.metrics.decode(errors="replace")
    try:
        told = json.loads(look.precision)
        models = {
            name: _model(model["replicas"], int(gauge(text, ADMISSION_WAITING, name)))
            for name, model in told["models"].items()
        }
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise SampleError(f"{PRECISION} does not say what is needed: {error!r}") from None
    return Sample(look.at_s, models, int(gauge(text, ENGINE_DEATHS)))


def gauge(text: str, metric: Metric, model: str | None = None) -> float:
    """Sum of a metric over its labels, or over those of one model; 0 where it is not there."""
    wanted = None if model is None else f'model="{model}"'
    lines = (line for line in text.splitlines() if line.startswith((f"{metric.name}{{", f"{metric.name} ")))
    return sum(float(line.rpartition(" ")[2]) for line in lines if wanted is None or wanted in line)


def _model(replicas: Sequence[dict[str, Any]], queued: int) -> ModelSample:
    if not replicas:
        raise LookupError("no replica")
    lowest = max(replicas, key=lambda one: int(one["level"]))

    def added(field: str) -> int:
        return sum(int(one[field]) for one in replicas)

    return ModelSample(
        level=int(lowest["level"]),
        level_name=str(lowest["level_name"]),
        kv_precision=str(lowest["kv_precision"]),
        kv_usage=max(float(one["kv_usage"]) for one in replicas),
        kv_blocks=added("kv_blocks"),
        kv_tokens=added("kv_tokens"),
        running=added("running"),
        waiting=added("waiting"),
        queued=queued,
        preemptions=added("preemptions"),
        forced_preemptions=added("forced_preemptions"),
        recomputed_tokens=added("recomputed_tokens"),
        switches=added("switches"),
        switching=any(one["switching"] for one in replicas),
    )
