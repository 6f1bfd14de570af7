"""The queue between the event loop and the database, and the thread that empties it."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from cluster.records.precision_change import PrecisionChange
from cluster.records.record import DecisionRecord
from cluster.records.replica_time import ReplicaBucket
from deployments.records.batch import Batch, DatabaseAwayError, Loss, RecordRefusedError
from deployments.telemetry.log_format import log_event
from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)

_Kept = TypeVar("_Kept", DecisionRecord, PrecisionChange)

BATCH: Final = 250
"""Records of one transaction."""
POLL_S: Final = 0.2
"""Seconds between two looks at the queue. Waking the thread for each record would cost the event loop a lock."""
FIRST_RETRY_S: Final = 0.2
LONGEST_RETRY_S: Final = 5.0
CLOSE_S: Final = 5.0
"""Seconds that the last records may take when the process ends."""
MAX_BUCKETS: Final = 20_000
MAX_CHANGES: Final = 1000
"""Changes of precision that wait; a replica makes one in many seconds. Decisions, which are many, do not crowd them out."""
LOG_EVERY_S: Final = 60.0

QUEUE_FULL, REFUSED, CLOSED, FAILED = "queue_full", "refused", "closed", "failed"
"""Why a record is lost: the database was away for too long, did not take it, was away at the end; it could not be made."""

_NONE_LOST: Final = dict.fromkeys((QUEUE_FULL, REFUSED, CLOSED, FAILED), 0)
"""Counters begin with every reason in them, so that one thread can read what another one counts."""


class Store(Protocol):
    """Where batches go."""

    def write(self, batch: Batch) -> None:
        """Raises `DatabaseAwayError` or `RecordRefusedError`."""

    def close(self) -> None:
        """Let go of the connection."""


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """What became of the records of this process, decisions and changes alike: `noted` is the sum of the others."""

    noted: int = 0
    written: int = 0
    queued: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By reason."""


class RecordWriter:
    """What puts is for the event loop and never waits: the queues have no lock. Everything else happens on a thread."""

    def __init__(
        self,
        make_store: Callable[[], Store],
        queue_records: int,
        *,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make_store` is called on the thread: imports and connecting take their time."""
        self._make_store = make_store
        self._limit = queue_records
        self._poll_s = poll_s
        self._clock = clock
        self._queue: deque[DecisionRecord] = deque()
        self._changes: deque[PrecisionChange] = deque()
        self._buckets: deque[ReplicaBucket] = deque(maxlen=MAX_BUCKETS)
        self._noted = 0
        self._lost_here: Counter[str] = Counter(_NONE_LOST)
        # From here on, only the thread writes.
        self._store: Store | None = None
        self._batch: list[DecisionRecord] = []
        self._changing: list[PrecisionChange] = []
        self._times: list[ReplicaBucket] = []
        self._losses: tuple[Loss, ...] = ()
        self._told: Counter[str] = Counter()
        self._written = 0
        self._lost_there: Counter[str] = Counter(_NONE_LOST)
        self._retry_at = float("-inf")
        self._retry_s = FIRST_RETRY_S
        self._away = False
        self._log_at = float("-inf")
        self._loss_log_at = float("-inf")
        self._loss_logged = 0
        self._stop = threading.Event()
        self._deadline = float("inf")
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, record: DecisionRecord) -> bool:
        """Take a record; False if it is lost, which is counted."""
        return self._enqueue(self._queue, record, self._limit)

    def put_change(self, change: PrecisionChange) -> bool:
        """Take a change of precision; False if it is lost, which is counted like a record."""
        return self._enqueue(self._changes, change, MAX_CHANGES)

    def failed(self) -> None:
        """Count a record that could not even be made."""
        self._noted += 1
        self._lost_here[FAILED] += 1

    def put_bucket(self, bucket: ReplicaBucket) -> None:
        """Take what was seen of a model's replicas; of what waits for too long, the oldest leaves."""
        self._buckets.append(bucket)

    def counts(self) -> RecordCounts:
        """What became of the records; exact when nothing is under way."""
        # With those that are 0: a series that is there from the start shows its first step.
        dropped = {reason: self._lost_here[reason] + self._lost_there[reason] for reason in _NONE_LOST}
        return RecordCounts(self._noted, self._written, self._waiting, dropped)

    def close(self, timeout_s: float = CLOSE_S) -> RecordCounts:
        """Write what is left, for `timeout_s` seconds at most; what cannot be is counted. Blocks. Idempotent."""
        if self._closed:
            return self.counts()
        self._closed = True
        self._deadline = self._clock() + timeout_s
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s + 1.0)
        left = self._waiting
        if left:
            self._lost_here[CLOSED] += left
            self._queue.clear()
            self._changes.clear()
            self._batch, self._changing = [], []
            log_event(_log, logging.ERROR, "records_lost", reason=Safe(CLOSED), records=left)
        return self.counts()

    def _enqueue(self, queue: deque[_Kept], one: _Kept, limit: int) -> bool:
        self._noted += 1
        if self._closed:
            self._lost_here[CLOSED] += 1
            return False
        if len(queue) >= limit:
            self._lost_here[QUEUE_FULL] += 1
            return False
        queue.append(one)
        return True

    @property
    def _waiting(self) -> int:
        """Records and changes that are neither written nor lost yet."""
        return len(self._queue) + len(self._batch) + len(self._changes) + len(self._changing)

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            self._step()
        self._retry_at, self._retry_s = float("-inf"), FIRST_RETRY_S
        while self._pending and self._clock() < self._deadline:
            self._step()
            if self._pending:
                time.sleep(min(FIRST_RETRY_S, max(0.0, self._deadline - self._clock())))
        if self._store is not None:
            self._store.close()

    @property
    def _pending(self) -> bool:
        return bool(self._waiting or self._buckets or self._times)

    def _step(self) -> None:
        """Write until nothing is left, or the database is away."""
        while self._clock() >= self._retry_at:
            self._take()
            if not (self._batch or self._changing or self._times or self._losses):
                break
            try:
                self._write()
            except Exception as error:  # noqa: BLE001 - whatever it was, the records are kept and the thread lives
                self._note_away(error)
                break
            self._note_back()
        self._log_losses()

    def _take(self) -> None:
        while self._queue and len(self._batch) < BATCH:
            self._batch.append(self._queue.popleft())
        while self._changes and len(self._changing) < BATCH:
            self._changing.append(self._changes.popleft())
        while self._buckets and len(self._times) < BATCH:
            self._times.append(self._buckets.popleft())
        if not self._losses:
            self._losses = self._new_losses()

    def _new_losses(self) -> tuple[Loss, ...]:
        lost = self._lost_here + self._lost_there
        new = lost - self._told
        self._told = lost
        return tuple(Loss(uuid.uuid4().hex, time.time(), reason, count) for reason, count in new.items())

    def _write(self) -> None:
        if self._store is None:
            self._store = self._make_store()
        try:
            self._store.write(Batch(tuple(self._batch), tuple(self._times), self._losses, tuple(self._changing)))
        except RecordRefusedError:
            self._write_singly(self._store)
        else:
            self._written += len(self._batch) + len(self._changing)
            self._batch, self._changing = [], []
        self._times, self._losses = [], ()

    def _write_singly(self, store: Store) -> None:
        """One of a batch is refused: find it, so that the others are written."""
        while self._batch:
            self._write_one(store, Batch((self._batch[0],)))
            del self._batch[0]
        while self._changing:
            self._write_one(store, Batch(changes=(self._changing[0],)))
            del self._changing[0]
        for rest in (Batch(buckets=tuple(self._times)), Batch(losses=self._losses)):
            try:
                store.write(rest)
            except RecordRefusedError:
                log_event(_log, logging.ERROR, "records_refused")

    def _write_one(self, store: Store, batch: Batch) -> None:
        try:
            store.write(batch)
        except RecordRefusedError:
            self._lost_there[REFUSED] += 1
        else:
            self._written += 1

    def _note_away(self, error: Exception) -> None:
        now = self._clock()
        self._retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
        if not self._away or now >= self._log_at:
            self._log_at = now + LOG_EVERY_S
            cause = str(error) if isinstance(error, DatabaseAwayError) or getattr(error, "log_safe", False) else ""
            log_event(
                _log,
                logging.ERROR,
                "records_database_away",
                error=type(error).__name__,
                cause=Safe(cause),
                waiting=self._waiting,
            )
        self._away = True

    def _note_back(self) -> None:
        self._retry_at, self._retry_s = float("-inf"), FIRST_RETRY_S
        if self._away:
            self._away = False
            log_event(_log, logging.INFO, "records_database_back")

    def _log_losses(self) -> None:
        lost = sum(self._lost_here.values()) + sum(self._lost_there.values())
        now = self._clock()
        if lost > self._loss_logged and now >= self._loss_log_at:
            self._loss_log_at = now + LOG_EVERY_S
            log_event(_log, logging.ERROR, "records_lost", records=lost - self._loss_logged, records_in_all=lost)
            self._loss_logged = lost
