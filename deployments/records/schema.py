"""Brings a records database to the schema of this release, or says why that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 0x706F696E74736D6E
"""Number of the lock that ingresses starting together take in turn on PostgreSQL: `pointsmn`."""


class NewerDatabaseError(RuntimeError):
    """The database was written by a later release. The message says what to do."""

    log_safe = True


def migrate(connection: Connection) -> bool:
    """Apply the steps that are missing, inside the connection's transaction; whether there were any.

    Raises `NewerDatabaseError` for a database with a step that this release does not know; nothing is changed then.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
    config = _config(connection)
    script = ScriptDirectory.from_config(config)
    present = set(MigrationContext.configure(connection).get_current_heads())
    check_known(present)
    if present == set(script.get_heads()):
        return False
    command.upgrade(config, "head")
    return True


def check_known(present: set[str]) -> None:
    """Raises `NewerDatabaseError` if a database that stands at the steps `present` is newer than this release."""
    known = {step.revision for step in ScriptDirectory.from_config(_config(None)).walk_revisions()}
    newer = sorted(present - known)
    if newer:
        raise NewerDatabaseError(
            f"the records database has schema {', '.join(newer)}, which this release does not know (it knows up to "
            f"{max(known)}): run the release that wrote it or a later one, or name another database in records.url"
        )


def present_steps(connection: Connection) -> set[str]:
    """The steps that a database stands at; none: it is empty."""
    return set(MigrationContext.configure(connection).get_current_heads())


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
