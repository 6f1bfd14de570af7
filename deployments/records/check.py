"""A look at the records database before a cluster starts."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from cluster.config.records import RecordsConfig
from deployments.records.schema import check_known, present_steps
from deployments.records.store import why_away
from deployments.records.target import connect, target_of


def check_database(records: RecordsConfig, state_dir: Path) -> str | None:
    """A remark if the database cannot be reached now, in words; requests are served all the same.

    Raises `NewerDatabaseError` for one that a later release wrote, and `RecordsConfigError` if its password is missing.
    """
    target = target_of(records, state_dir)
    engine = connect(target, read_only=True)
    try:
        with engine.connect() as connection:
            check_known(present_steps(connection))
    except SQLAlchemyError as error:
        return f"records cannot be written now, they wait until they can: {target.shown}: {why_away(error)}"
    finally:
        engine.dispose()
    return None
