"""The records database: every routing decision, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from cluster.config.base import EnvironmentName, Section
from cluster.config.mistakes import Mistake

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig


class RecordsConfig(Section):
    """Where decisions are written down, and for how long they are kept. See docs/records.md."""

    enabled: bool = True
    """False writes nothing down (yes or no, no unit)."""
    url: str | None = Field(
        None,
        max_length=1024,
        pattern=r"^postgresql://([A-Za-z0-9._~%-]+@)?[A-Za-z0-9.:,_\[\]-]*/[A-Za-z0-9._~%-]+(\?\S*)?$",
    )
    """URL of a PostgreSQL database, `postgresql://USER@HOST:PORT/NAME`, without a password; null: a file of the state."""
    password_env: EnvironmentName | None = None
    """Name of the environment variable that holds the database's password; null: none, or that of `password_file`."""
    password_file: str | None = Field(None, max_length=4096, pattern=r"^(/|~/).+$")
    """Absolute path of a file that holds the database's password (or below `~/`); null: none."""
    queue_records: int = Field(10_000, ge=1, le=1_000_000)
    """Records that wait to be written, per ingress process; past them new ones are dropped, and counted."""
    keep_days: float = Field(30.0, gt=0, le=36_500)
    """Days that a record is kept."""
    max_records: int = Field(1_000_000, ge=100, le=1_000_000_000)
    """Records that are kept (a count); the oldest leave first."""


def check_records(config: ClusterConfig) -> Iterator[Mistake]:
    """Mistakes of the section."""
    records = config.records
    for name in ("password_env", "password_file"):
        if getattr(records, name) is not None and records.url is None:
            yield Mistake(
                f"records.{name}", "the local file has no password", "name a database in records.url, or leave it out"
            )
    if records.password_env is not None and records.password_file is not None:
        yield Mistake("records.password_file", "records.password_env names the password, too", "keep one of both")
    if records.url is not None and "password=" in records.url:
        yield Mistake(
            "records.url", "this holds a password", "name it by records.password_env or records.password_file"
        )
