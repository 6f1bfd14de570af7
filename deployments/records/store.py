"""Writes batches of records to SQLite or PostgreSQL. Blocks: it is called by the writer's thread alone."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, Table, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from cluster.records.replica_time import BUCKET_S
from deployments.records.batch import Batch, DatabaseAwayError, RecordRefusedError
from deployments.records.schema import NewerDatabaseError, migrate
from deployments.records.tables import (
    DECISIONS,
    LOSSES,
    MODEL_COSTS,
    PRECISION_CHANGES,
    REPLICA_SECONDS,
    Row,
    change_row,
    cost_rows,
    decision_row,
)
from deployments.records.target import Target, connect
from deployments.telemetry.log_format import log_event
from deployments.telemetry.log_safety import Safe
from deployments.telemetry.store_file import StoreUnavailableError, file_identity, opening_lock, quarantine

_log = logging.getLogger(__name__)

MAX_CHANGES: Final = 100_000
"""Changes of precision that are kept, 30 MB or so: those of one replica that changes twice a minute for a month."""
PRUNE_EVERY_S: Final = 60.0
_PRUNED_AT_ONCE: Final = 2000
_PRUNINGS: Final = 50
"""Deletions of one pruning at most, so that the queue is not kept waiting."""
_OPENING_S: Final = 2.0


class RecordStore:
    """One ingress's way into one database. Opens it when first needed, and anew after each failure."""

    def __init__(
        self,
        target: Target,
        ingress: str,
        *,
        keep_days: float = 30.0,
        max_records: int = 1_000_000,
        max_changes: int = MAX_CHANGES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`ingress` names the process that writes. What is kept overshoots `max_records` by a minute's records at most."""
        self._target = target
        self._ingress = ingress
        self._keep_s = keep_days * 86_400
        self._max_records = max_records
        self._max_changes = max_changes
        self._clock = clock
        self._engine: Engine | None = None
        self._identity: tuple[int, int] | None = None
        self._prune_at = 0.0

    def write(self, batch: Batch) -> None:
        """Write all of `batch`. Raises `DatabaseAwayError`, or `RecordRefusedError` for a batch that will never be taken."""
        try:
            engine = self._open()
            with engine.begin() as connection:
                self._insert(connection, batch)
            if self._clock() >= self._prune_at:
                self._prune_at = self._clock() + PRUNE_EVERY_S
                self.prune()
        except (SQLAlchemyError, OSError, StoreUnavailableError, NewerDatabaseError) as error:
            raise self._failed(error) from None

    def prune(self) -> int:
        """Delete what is too old or too much, in small transactions; returns the decisions deleted."""
        engine = self._open()
        before = self._clock() - self._keep_s
        self._prune_changes(engine, before)
        with engine.begin() as connection:
            excess = (connection.scalar(select(func.count()).select_from(DECISIONS)) or 0) - self._max_records
            if excess > 0:
                oldest_kept = select(DECISIONS.c.at).order_by(DECISIONS.c.at).offset(excess).limit(1)
                before = max(before, connection.scalar(oldest_kept) or before)
            connection.execute(delete(REPLICA_SECONDS).where(REPLICA_SECONDS.c.minute < before // BUCKET_S))
            connection.execute(delete(LOSSES).where(LOSSES.c.at < before))
        deleted = 0
        for _ in range(_PRUNINGS):
            oldest = select(DECISIONS.c.id).where(DECISIONS.c.at < before).order_by(DECISIONS.c.at)
            with engine.begin() as connection:
                chosen = connection.scalars(oldest.limit(_PRUNED_AT_ONCE)).all()
                for start in range(0, len(chosen), 500):
                    some = chosen[start : start + 500]
                    connection.execute(delete(MODEL_COSTS).where(MODEL_COSTS.c.decision_id.in_(some)))
                    connection.execute(delete(DECISIONS).where(DECISIONS.c.id.in_(some)))
            deleted += len(chosen)
            if len(chosen) < _PRUNED_AT_ONCE:
                break
        return deleted

    def _prune_changes(self, engine: Engine, before: float) -> None:
        """Changes are few and stay for all of their days, however many decisions there are."""
        changes = PRECISION_CHANGES.c
        too_old = select(changes.id).where(changes.at < before)
        # Past the newest, in one look: two ingresses that count first and delete then would take twice as many.
        too_many = select(changes.id).order_by(changes.at.desc()).offset(self._max_changes)
        for surplus in (too_old, too_many):
            for _ in range(_PRUNINGS):
                some = delete(PRECISION_CHANGES).where(changes.id.in_(surplus.limit(_PRUNED_AT_ONCE)))
                with engine.begin() as connection:
                    done = connection.execute(some)
                if done.rowcount < _PRUNED_AT_ONCE:
                    break

    def close(self) -> None:
        """Close the connection. Idempotent; a later `write` opens it again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    def _insert(self, connection: Connection, batch: Batch) -> None:
        if batch.records:
            _add(connection, DECISIONS, [decision_row(record) for record in batch.records])
            _add(connection, MODEL_COSTS, [row for record in batch.records for row in cost_rows(record)])
        _add(connection, LOSSES, [self._loss_row(loss.id, loss.at, loss.reason, loss.records) for loss in batch.losses])
        # All ingresses write the same ones: in any other order, PostgreSQL would have them wait for each other.
        changes = sorted(batch.changes, key=lambda change: change.id)
        _add(connection, PRECISION_CHANGES, [change_row(change) for change in changes])
        # A bucket grows while its minute lasts: the last one put is the fullest.
        buckets = {(each.minute, each.model): each.seconds for each in batch.buckets}
        _replace(
            connection,
            REPLICA_SECONDS,
            [
                {
                    "minute": minute,
                    "model": model,
                    "ingress": self._ingress,
                    "busy_s": seconds.busy,
                    "idle_s": seconds.idle,
                }
                for (minute, model), seconds in buckets.items()
            ],
        )

    def _loss_row(self, loss_id: str, at: float, reason: str, records: int) -> Row:
        return {"id": loss_id, "at": at, "ingress": self._ingress, "reason": reason, "records": records}

    def _open(self) -> Engine:
        path = self._target.path
        if self._engine is not None and path is not None and file_identity(path) != self._identity:
            # Somebody put the file aside or deleted it: writing on would fill a file nobody reads.
            self.close()
        if self._engine is None:
            self._engine = self._opened_file(path) if path is not None else self._opened()
            self._identity = None if path is None else file_identity(path)
        return self._engine

    def _opened(self) -> Engine:
        engine = connect(self._target)
        try:
            with engine.begin() as connection:
                if migrate(connection):
                    log_event(_log, logging.INFO, "records_database_migrated")
        except BaseException:
            engine.dispose()
            raise
        return engine

    def _opened_file(self, path: Path) -> Engine:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with opening_lock(path, _OPENING_S):
            # Made here first, so that nobody else can read it.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            if not _sound(self._target):
                aside = quarantine(path)
                log_event(_log, logging.ERROR, "records_database_put_aside", moved_to=Safe(aside.name))
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            return self._opened()

    def _failed(self, error: Exception) -> Exception:
        if isinstance(error, DataError | IntegrityError) or (
            isinstance(error, StatementError) and not isinstance(error, DBAPIError)
        ):
            return RecordRefusedError(type(error).__name__)
        self.close()
        return DatabaseAwayError(f"{self._target.shown}: {why_away(error)}")


def _sound(target: Target) -> bool:
    """Whether the file is a database in order, or empty. Raises `SQLAlchemyError` if it is only not to be had now."""
    engine = connect(target, read_only=True)
    try:
        with engine.connect() as connection:
            verdict: object = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            return verdict == "ok"
    except DBAPIError as error:
        if _sqlite_name(error) in {"SQLITE_CORRUPT", "SQLITE_NOTADB"}:
            return False
        raise
    finally:
        engine.dispose()


def _sqlite_name(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlite_errorname", "") or "")


def why_away(error: Exception) -> str:
    """What happened, in words that hold nothing of a record or a password."""
    if isinstance(error, NewerDatabaseError | StoreUnavailableError):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None) or _sqlite_name(error) or "no connection"
        return f"{type(error).__name__} ({state})"
    return type(error).__name__


def _add(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert; rows that are there already stay, as after a commit whose confirmation was lost."""
    if rows:
        connection.execute(_insert_into(connection, table).on_conflict_do_nothing(), rows)


def _replace(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert; rows with the same key are set to the new values."""
    if rows:
        statement = _insert_into(connection, table)
        values = {column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key}
        connection.execute(statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=values), rows)


def _insert_into(connection: Connection, table: Table) -> Any:  # noqa: ANN401 - the two dialects' inserts share no type
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
