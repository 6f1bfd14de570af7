"""Which database records go to, and connecting to it. A password is in no message, log or trace."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Engine, create_engine, event, make_url

from cluster.config.records import RecordsConfig
from deployments.paths import records_path

_CONNECT_S: Final = 3
_STATEMENT_MS: Final = 10_000
_BUSY_S: Final = 2.0


class RecordsConfigError(RuntimeError):
    """The database cannot be named: its password is missing. The message says which setting to mend."""

    log_safe = True


@dataclass(frozen=True, slots=True)
class Target:
    """One database."""

    url: URL = field(repr=False)
    path: Path | None
    """The file; None: it is on a server."""

    @property
    def shown(self) -> str:
        """What it is called in messages."""
        return str(self.path) if self.path is not None else self.url.set(password=None).render_as_string()


def target_of(records: RecordsConfig, state_dir: Path, environ: Mapping[str, str] | None = None) -> Target:
    """The database of a config. Raises `RecordsConfigError`."""
    if records.url is None:
        path = records_path(state_dir)
        return Target(URL.create("sqlite+pysqlite", database=str(path)), path)
    url = make_url(records.url).set(drivername="postgresql+psycopg")
    password = _password(records, os.environ if environ is None else environ)
    return Target(url if password is None else url.set(password=password), None)


def _password(records: RecordsConfig, environ: Mapping[str, str]) -> str | None:
    if records.password_env is not None:
        found = environ.get(records.password_env)
        if not found:
            raise RecordsConfigError(f"records.password_env names {records.password_env}, which is not set")
        return found
    if records.password_file is None:
        return None
    path = Path(records.password_file).expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise RecordsConfigError(f"records.password_file {path} cannot be read: {why}") from None


def connect(target: Target, *, read_only: bool = False) -> Engine:
    """An engine that keeps one connection. Nothing is opened yet."""
    if target.path is not None:
        engine = create_engine(
            target.url, pool_size=1, max_overflow=0, hide_parameters=True, connect_args={"timeout": _BUSY_S}
        )
        _begin_at_once(engine, read_only)
        return engine
    return create_engine(
        target.url,
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
        connect_args={
            "connect_timeout": _CONNECT_S,
            "options": f"-c statement_timeout={_STATEMENT_MS} -c lock_timeout={_STATEMENT_MS}"
            f" -c default_transaction_read_only={'on' if read_only else 'off'}",
            "tcp_user_timeout": _STATEMENT_MS,
            "application_name": "pointsman",
        },
    )


def _begin_at_once(engine: Engine, read_only: bool) -> None:
    """Transactions that hold for the schema, too, and take the file's write lock when they begin, not half-way.

    Python's driver would begin them by itself, and not before every statement.
    """

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:  # noqa: ANN401 - the driver's own types
        connection.isolation_level = None
        if read_only:
            connection.execute("PRAGMA query_only = 1")
            return
        connection.execute("PRAGMA journal_mode = WAL")
        # No wait for the disk on each commit: an operating system crash may cost the last records, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 4194304")

    @event.listens_for(engine, "begin")
    def _began(connection: Any) -> None:  # noqa: ANN401 - the driver's own types
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
