"""`pointsman precision timeline`."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.cli import output
from deployments.cli.errors import CliError
from deployments.cli.options import Json, RunningConfig, StateDir
from deployments.cli.since import Since


def timeline(
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="Only this model's.", show_default=False)
    ] = None,
    since: Since = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=10_000, metavar="N", help="How many to list, the latest.")
    ] = 50,
    config: RunningConfig = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """List when replicas changed their precision, why, and what it cost, the oldest change first."""
    from deployments.cli.place import find_place
    from deployments.cli.precision_views import show_timeline
    from deployments.cli.record_views import open_records, warn_of_losses
    from deployments.cli.since import since_time
    from deployments.records.reader import RecordsUnreadableError

    reader = open_records(config, find_place(state_dir), must_be_kept=True)
    after = since_time(since)
    try:
        rows = reader.precision_changes(model, after, limit)[::-1]
        lost = reader.lost(after)
    except RecordsUnreadableError as error:
        raise CliError(str(error)) from None
    if json:
        output.print_json({"changes": rows, "lost": lost})
        return
    if rows:
        show_timeline(rows)
    else:
        output.print_line("There are no such changes.")
    warn_of_losses(lost)
