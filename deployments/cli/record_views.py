"""Opens the records database for commands, and draws what is in it."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.cli import output
from deployments.cli.config_files import config_in_force, load_config
from deployments.cli.errors import CliError, ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from deployments.cli.place import Place
    from deployments.records.reader import RecordsReader

Row = dict[str, Any]


def open_records(config: Path | None, place: Place, *, must_be_kept: bool = False) -> RecordsReader:
    """The reader of the records of a place's cluster. Raises `CliError`, with `must_be_kept` also if none are kept."""
    from deployments.records.reader import RecordsReader
    from deployments.records.target import RecordsConfigError, target_of

    path = config_in_force(config, place)
    kept = load_config(path).records
    if must_be_kept and not kept.enabled:
        up = place.command(f"up --config {shlex.quote(str(path))}")
        remedy = f"Set records.enabled to true, and start the cluster anew: `{place.command('down')}`, then `{up}`."
        raise CliError(
            f"nothing is written down: records are disabled (records.enabled) in {path}", remedy, ExitCode.USAGE
        )
    try:
        return RecordsReader(target_of(kept, place.state_dir))
    except RecordsConfigError as error:
        raise CliError(str(error), code=ExitCode.USAGE) from None


def show_list(rows: list[Row]) -> None:
    """One line a decision."""
    numbers = ("status", "attempts", "tokens", "engine s", "total s")
    table = output.table("time", "request", "asked", "model", "rule", *numbers, "tenant", right=numbers)
    for row in rows:
        table.add_row(
            shown_time(row["at"]),
            row["request_id"],
            row["asked_model"],
            row["model"],
            row["rule"],
            str(row["status"]),
            str(row["attempts"]),
            str(row["prompt_tokens"] + row["completion_tokens"]),
            f"{row['engine_seconds']:.2f}",
            f"{row['total_s']:.2f}",
            row["tenant"],
        )
    output.stdout().print(table)


def show_one(row: Row) -> None:
    """One decision, with candidates, signals, attempts and costs."""
    lines = {
        "request": row["request_id"],
        "trace": row["trace_id"],
        "time": shown_time(row["at"]),
        "asked": f"{row['endpoint']}, model {row['asked_model']}",
        "model": row["model"],
        "rule": row["rule"],
        "reason": row["reason"],
        "status": f"{row['status']}{'' if row['error'] is None else ' ' + row['error']}",
        "caller": " ".join(filter(None, (row["tenant"], row["key_name"]))) or "no key",
        "confidence": "not known" if row["confidence"] is None else f"{row['confidence']:.4f}",
        "verified": {None: "not checked", True: "yes", False: "no"}[row["verified"]],
        "precision": f"compute {row['precision_compute'] or 'unknown'}, KV {row['precision_kv'] or 'unknown'}",
        "first token": "" if row["ttft_s"] is None else f"{row['ttft_s']:.3f} s",
        "total": f"{row['total_s']:.3f} s",
    }
    for name, value in lines.items():
        output.print_line((f"{name:<12}", "dim"), output.visible(str(value)))
    console = output.stdout()
    for table in (_candidates(row), _signals(row), _trail(row), _models(row)):
        if table.row_count:
            output.print_line()
            console.print(table)


def show_costs(kind: str, rows: list[Row]) -> None:
    """Sums, a line each."""
    numbers = ("requests", "prompt", "completion", "cached", "engine s", "cost")
    table = output.table(kind, *numbers, right=numbers)
    for row in rows:
        table.add_row(
            str(row[kind]) or "(none)",
            str(row["requests"]),
            str(row["prompt_tokens"]),
            str(row["completion_tokens"]),
            str(row["cached_tokens"]),
            f"{row['engine_seconds']:.1f}",
            f"{row['cost']:.6g}",
        )
    output.stdout().print(table)


def show_replicas(seconds: dict[str, Row], engine_seconds: dict[str, float]) -> None:
    """Busy and idle time of replicas, and how many requests shared a busy one on average."""
    numbers = ("busy s", "idle s", "idle", "at once")
    table = output.table("replicas of", *numbers, right=numbers)
    for model, one in sorted(seconds.items()):
        busy, idle = one["busy_s"], one["idle_s"]
        total = busy + idle
        held = engine_seconds.get(model, 0.0)
        table.add_row(
            model,
            f"{busy:.0f}",
            f"{idle:.0f}",
            f"{idle / total:.0%}" if total else "",
            f"{held / busy:.1f}" if busy else "",
        )
    output.stdout().print(table)


def warn_of_losses(lost: dict[str, int]) -> None:
    """Say what is missing."""
    if lost:
        words = ", ".join(f"{count} ({reason})" for reason, count in sorted(lost.items()))
        output.warn(f"records are missing: {words}; docs/records.md says when that happens")


def shown_time(seconds: float) -> str:
    """A Unix time as a date and time of day, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _candidates(row: Row) -> Table:
    table = output.table("candidate", "score", "", right=("score",))
    for one in row["candidates"]:
        score = "" if one["score"] is None else f"{one['score']:.3f}"
        table.add_row(one["model"], score, output.visible(one["reason"]), style="" if one["fits"] else "dim")
    return table


def _signals(row: Row) -> Table:
    table = output.table("signal", "value")
    for name, value in row["signals"].items():
        shown = f"{value['value']} ({value['source']})" if isinstance(value, dict) else str(value)
        table.add_row(name.replace("_", " "), output.visible(shown))
    return table


def _trail(row: Row) -> Table:
    numbers = ("attempt", "confidence", "seconds")
    table = output.table("attempt", "model", "confidence", "seconds", "outcome", "why", right=numbers)
    for number, step in enumerate(row["trail"], 1):
        confidence, seconds = step.get("confidence"), step.get("seconds")
        table.add_row(
            str(number),
            str(step.get("model")),
            "" if confidence is None else f"{confidence:.3f}",
            "" if seconds is None else f"{seconds:.2f}",
            str(step.get("outcome")),
            output.visible(str(step.get("why", ""))),
        )
    return table


def _models(row: Row) -> Table:
    numbers = ("calls", "prompt", "completion", "cached", "engine s", "cost")
    table = output.table("worked", *numbers, "", right=numbers)
    for one in row["models"]:
        table.add_row(
            one["model"],
            str(one["calls"]),
            str(one["prompt_tokens"]),
            str(one["completion_tokens"]),
            str(one["cached_tokens"]),
            f"{one['engine_seconds']:.3f}",
            f"{one['cost']:.6g}",
            "tokens estimated" if one["estimated"] else "",
        )
    return table
