"""Draws the timeline of precision changes."""

from __future__ import annotations

from typing import Any, Final

from deployments.cli import output
from deployments.cli.record_views import shown_time

Row = dict[str, Any]

_REPLICA_LETTERS: Final = 6
"""The end of a replica's id: it begins with what all replicas of a cluster have in common."""


def show_timeline(rows: list[Row]) -> None:
    """One line a change of `RecordsReader.precision_changes`, the oldest first whatever order they come in."""
    numbers = ("pause ms", "preempted", "recomputed")
    table = output.table(
        "time", "model", "replica", "level", "KV", *numbers, "blocks", "cause", "reason", right=(*numbers, "blocks")
    )
    for column in table.columns:
        # In a narrow terminal every word is still there to be read, on more lines.
        column.overflow = "fold"
    names: dict[str, tuple[int, str]] = {}
    for row in sorted(rows, key=lambda one: (one["at"], one["id"])):
        table.add_row(
            shown_time(row["at"]),
            output.visible(row["model"]),
            output.visible(row["replica"][-_REPLICA_LETTERS:]),
            output.visible(_level(row, names.get(row["replica"]))),
            output.visible(_kv(row)),
            _number(row, round(1000 * row["pause_s"])),
            _number(row, row["preempted"]),
            _number(row, row["tokens"]),
            _blocks(row),
            output.visible(row["cause"]),
            output.visible(row["reason"] if row["error"] is None else f"{row['reason']}; failed: {row['error']}"),
            style="" if row["error"] is None else "red",
        )
        names[row["replica"]] = (row["level"], row["level_name"])
    output.stdout().print(table)


def _level(row: Row, last: tuple[int, str] | None) -> str:
    """Both levels by name. A row tells the name of the later one: the earlier one's is in the replica's last change."""
    before, after = row["level_before"], f"{row['level']} {row['level_name']}"
    if before == row["level"]:
        return after
    if before == 0:
        return f"0 normal → {after}"
    return f"{before} {last[1]} → {after}" if last is not None and last[0] == before else f"{before} → {after}"


def _kv(row: Row) -> str:
    return f"{row['kv_before'] or 'unknown'} → {row['kv_after'] or 'unknown'}" if _switched(row) else ""


def _switched(row: Row) -> bool:
    return bool(row["kv_before"] != row["kv_after"])


def _number(row: Row, value: int) -> str:
    """What a switch cost; blank where there was none."""
    return str(value) if value or _switched(row) else ""


def _blocks(row: Row) -> str:
    before, after = row["blocks_before"], row["blocks_after"]
    if before == after:
        return str(after) if after else ""
    return f"{before} → {after}"
