"""The records of one ingress: what its event loop calls, and the metrics of what became of it."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol

from prometheus_client.metrics_core import Metric as Family

from cluster.config.records import RecordsConfig
from cluster.records.precision_change import PrecisionChange
from cluster.records.record import DecisionRecord
from cluster.records.replica_time import ReplicaClock
from cluster.telemetry import metric_table
from deployments.channel.receiver import ChannelReceiver
from deployments.records.writer import RecordCounts, RecordWriter, Store
from deployments.telemetry.series import number_family

_log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""Seconds between two looks at which replicas are idle."""

SAVE_EVERY: Final = 10
"""Looks after which the replicas' time goes to the database."""

BUSY, IDLE = "busy", "idle"


class Recorder(Protocol):
    """What handlers of requests, and what watches the replicas, see of the records."""

    def note(self, record: DecisionRecord) -> None:
        """Write down a decision. Never waits, never raises."""

    def failed(self) -> None:
        """Count a record that could not be made."""

    def changed(self, change: PrecisionChange) -> None:
        """Write down a change of precision; one that several ingresses note is kept once. Never waits, never raises."""


class NoRecords:
    """Writes nothing down."""

    def note(self, record: DecisionRecord) -> None:
        """Nothing is kept."""

    def failed(self) -> None:
        """Nothing is counted."""

    def changed(self, change: PrecisionChange) -> None:
        """Nothing is kept."""


class Records:
    """The records of one ingress process."""

    def __init__(self, config: RecordsConfig, state_dir: Path, channel: ChannelReceiver, process: str) -> None:
        """Opens nothing yet."""
        ingress = uuid.uuid4().hex
        self._channel = channel
        self._process = process
        self._clock = ReplicaClock()
        self._engine_seconds: dict[str, float] = {}
        self._cost: dict[str, float] = {}
        self._writer = (
            RecordWriter(lambda: _open(config, state_dir, ingress), config.queue_records) if config.enabled else None
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write, and to watch the replicas."""
        if self._writer is not None:
            self._writer.start()
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """Write what is left, for a bounded time. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        self._save(time.time())
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close)

    def note(self, record: DecisionRecord) -> None:
        """Take a record: add up what it cost, and queue it."""
        for one in record.cost.models:
            self._engine_seconds[one.model] = self._engine_seconds.get(one.model, 0.0) + one.engine_seconds
            if one.cost:
                self._cost[one.model] = self._cost.get(one.model, 0.0) + one.cost
        if self._writer is not None:
            self._writer.put(record)

    def failed(self) -> None:
        """Count a record that could not be made."""
        if self._writer is not None:
            self._writer.failed()

    def changed(self, change: PrecisionChange) -> None:
        """Queue a change of precision."""
        if self._writer is not None:
            self._writer.put_change(change)

    def counts(self) -> RecordCounts:
        """What became of the records."""
        return RecordCounts() if self._writer is None else self._writer.counts()

    def families(self) -> Iterator[Family]:
        """The metrics."""
        total = self._clock.total
        seconds = [((model, BUSY), one.busy) for model, one in total.items()]
        seconds += [((model, IDLE), one.idle) for model, one in total.items()]
        yield number_family(metric_table.REPLICA_SECONDS, seconds)
        yield number_family(
            metric_table.ENGINE_SECONDS, [((model,), value) for model, value in self._engine_seconds.items()]
        )
        yield number_family(metric_table.COST, [((model,), value) for model, value in self._cost.items()])
        own, counts = (self._process,), self.counts()
        yield number_family(metric_table.RECORDS_WRITTEN, [(own, counts.written)])
        yield number_family(metric_table.RECORDS_QUEUED, [(own, counts.queued)])
        dropped = [((self._process, reason), number) for reason, number in counts.dropped.items()]
        yield number_family(metric_table.RECORDS_DROPPED, dropped)

    async def _watch(self) -> None:
        """Add up how long replicas are busy and idle, by what they last told."""
        looks, last = 0, time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            self._clock.add(self._replicas(), now - last, time.time())
            last = now
            looks += 1
            if looks % SAVE_EVERY == 0:
                self._save(time.time())

    def _replicas(self) -> Iterable[tuple[str, int]]:
        now = asyncio.get_running_loop().time()
        for replica in self._channel.attached():
            if replica.routable(now):
                requests = max(replica.stats.running + replica.stats.waiting, len(replica.streams))
                yield replica.hello.model, requests

    def _save(self, now_s: float) -> None:
        if self._writer is not None:
            for bucket in self._clock.buckets(now_s):
                self._writer.put_bucket(bucket)


def _open(config: RecordsConfig, state_dir: Path, ingress: str) -> Store:
    """On the writer's thread: SQLAlchemy takes a while to import."""
    from deployments.records.store import RecordStore
    from deployments.records.target import target_of

    return RecordStore(
        target_of(config, state_dir), ingress, keep_days=config.keep_days, max_records=config.max_records
    )
