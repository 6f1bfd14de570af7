"""Reads records back, while any number of ingresses write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, func, inspect, or_, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from cluster.records.replica_time import BUCKET_S
from deployments.records.schema import NewerDatabaseError, check_known, present_steps
from deployments.records.store import why_away
from deployments.records.tables import DECISIONS, LOSSES, MODEL_COSTS, PRECISION_CHANGES, REPLICA_SECONDS
from deployments.records.target import Target, connect

Row = dict[str, Any]

_SUMS: Final = ("prompt_tokens", "completion_tokens", "cached_tokens", "engine_seconds", "cost")


class RecordsUnreadableError(RuntimeError):
    """The database cannot be read. The message says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which decisions to list; None: whatever it is."""

    model: str | None = None
    reason: str | None = None
    """A rule, or a part of the reason."""
    tenant: str | None = None
    since: float | None = None
    """Unix time, seconds."""
    failed: bool = False
    """Only those with a status of 400 and up."""


class RecordsReader:
    """Reads one database. One that nobody has written to yet reads as empty."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def decisions(self, wanted: Wanted, limit: int) -> list[Row]:
        """The latest decisions first, at most `limit`. Raises `RecordsUnreadableError`, as all methods do."""
        statement = select(DECISIONS).where(*_conditions(wanted)).order_by(DECISIONS.c.at.desc()).limit(limit)
        return self._rows(statement)

    def find(self, given: str) -> list[Row]:
        """The decisions with this request id or trace id, or the beginning of one, each with its costs by model."""
        columns = (DECISIONS.c.request_id, DECISIONS.c.trace_id, DECISIONS.c.id)
        exact = or_(*(column == given for column in columns))
        begins = or_(*(column.startswith(given, autoescape=True) for column in columns))
        for condition in (exact, begins):
            rows = self._rows(select(DECISIONS).where(condition).order_by(DECISIONS.c.at).limit(100))
            if rows:
                return [{**row, "models": self._models(row["id"])} for row in rows]
        return []

    def costs(self, by: str, since: float | None) -> list[Row]:
        """Sums by `model`, `rule` or `tenant`, the dearest in engine-seconds first."""
        table = MODEL_COSTS if by == "model" else DECISIONS
        requests = func.count().label("requests")
        sums = [func.sum(table.c[name]).label(name) for name in _SUMS]
        calls = [func.sum(MODEL_COSTS.c.calls).label("calls")] if by == "model" else []
        statement = select(table.c[by], requests, *calls, *sums).group_by(table.c[by])
        if since is not None:
            statement = statement.where(table.c.at >= since)
        return [_numbers(row) for row in self._rows(statement.order_by(func.sum(table.c.engine_seconds).desc()))]

    def replica_seconds(self, since: float | None) -> dict[str, Row]:
        """Busy and idle seconds of all replicas, by model. Each ingress sees all replicas, so the fullest minute counts."""
        busy, idle = func.max(REPLICA_SECONDS.c.busy_s), func.max(REPLICA_SECONDS.c.idle_s)
        inner = select(REPLICA_SECONDS.c.model, busy.label("busy_s"), idle.label("idle_s"))
        if since is not None:
            inner = inner.where(REPLICA_SECONDS.c.minute >= since // BUCKET_S)
        minutes = inner.group_by(REPLICA_SECONDS.c.minute, REPLICA_SECONDS.c.model).subquery()
        statement = select(minutes.c.model, func.sum(minutes.c.busy_s), func.sum(minutes.c.idle_s))
        with self._connected() as connection:
            rows = [] if connection is None else connection.execute(statement.group_by(minutes.c.model)).all()
        return {model: {"busy_s": float(busy_s), "idle_s": float(idle_s)} for model, busy_s, idle_s in rows}

    def lost(self, since: float | None) -> dict[str, int]:
        """Records that are missing, by reason."""
        statement = select(LOSSES.c.reason, func.sum(LOSSES.c.records).label("records")).group_by(LOSSES.c.reason)
        if since is not None:
            statement = statement.where(LOSSES.c.at >= since)
        return {row["reason"]: int(row["records"]) for row in self._rows(statement)}

    def precision_changes(self, model: str | None, since: float | None, limit: int) -> list[Row]:
        """The latest changes on precision ladders first, at most `limit`: of `model` (None: of all), from `since` on.

        `since` is a Unix time in seconds; None: from the first. A row holds the fields of `PrecisionChange`.
        """
        changes = PRECISION_CHANGES.c
        statement = select(PRECISION_CHANGES).order_by(changes.at.desc(), changes.id.desc()).limit(limit)
        if model is not None:
            statement = statement.where(changes.model == model)
        if since is not None:
            statement = statement.where(changes.at >= since)
        with self._connected() as connection:
            # A database of an earlier release has no such table until an ingress of this one starts.
            if connection is None or not inspect(connection).has_table(PRECISION_CHANGES.name):
                return []
            return [dict(row) for row in connection.execute(statement).mappings()]

    def _models(self, decision_id: str) -> list[Row]:
        columns = [column for column in MODEL_COSTS.c if column.name not in ("decision_id", "at")]
        return self._rows(select(*columns).where(MODEL_COSTS.c.decision_id == decision_id))

    def _rows(self, statement: Select[Any]) -> list[Row]:
        with self._connected() as connection:
            return [] if connection is None else [dict(row) for row in connection.execute(statement).mappings()]

    @contextmanager
    def _connected(self) -> Iterator[Connection | None]:
        """A connection; None: there is nothing to read yet."""
        if self._target.path is not None and not self._target.path.exists():
            yield None
            return
        engine = connect(self._target, read_only=True)
        try:
            with engine.connect() as connection:
                steps = present_steps(connection)
                check_known(steps)
                yield connection if steps else None
        except (DBAPIError, SQLAlchemyError, NewerDatabaseError) as error:
            raise RecordsUnreadableError(f"{self._target.shown}: {why_away(error)}") from None
        finally:
            engine.dispose()


def _conditions(wanted: Wanted) -> Iterator[ColumnElement[bool]]:
    if wanted.model is not None:
        yield DECISIONS.c.model == wanted.model
    if wanted.reason is not None:
        yield or_(DECISIONS.c.rule == wanted.reason, DECISIONS.c.reason.icontains(wanted.reason, autoescape=True))
    if wanted.tenant is not None:
        yield DECISIONS.c.tenant == wanted.tenant
    if wanted.since is not None:
        yield DECISIONS.c.at >= wanted.since
    if wanted.failed:
        yield DECISIONS.c.status >= 400


def _numbers(row: Row) -> Row:
    """PostgreSQL sums whole numbers into decimals, which JSON does not know."""
    return {
        name: value if isinstance(value, str | int | float | None) else int(value) if name != "cost" else float(value)
        for name, value in row.items()
    }
