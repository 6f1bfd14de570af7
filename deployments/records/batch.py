"""What a writer hands to the database at once."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.records.precision_change import PrecisionChange
from cluster.records.record import DecisionRecord
from cluster.records.replica_time import ReplicaBucket


class DatabaseAwayError(RuntimeError):
    """The database takes nothing now; what was to be written is to be kept. The message holds nothing of a record."""

    log_safe = True


class RecordRefusedError(RuntimeError):
    """The database is there and does not take this batch, now or later."""

    log_safe = True


@dataclass(frozen=True, slots=True)
class Loss:
    """Records that are missing."""

    id: str
    at: float
    """Unix time at which it was noticed, seconds."""
    reason: str
    """A word: `queue_full`, `refused`, `failed` or `closed`."""
    records: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Written in one transaction: all of it or nothing. Writing it twice leaves what writing it once does."""

    records: tuple[DecisionRecord, ...] = ()
    buckets: tuple[ReplicaBucket, ...] = ()
    losses: tuple[Loss, ...] = ()
    changes: tuple[PrecisionChange, ...] = ()
