"""`pointsman records`."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.cli import output
from deployments.cli.errors import CliError
from deployments.cli.groups import FLAG
from deployments.cli.options import Json, RunningConfig, StateDir
from deployments.cli.since import Since


def records(  # noqa: PLR0913, PLR0917 - every option is an argument
    request: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="A request id or trace id, or its beginning.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="Only this model's.", show_default=False)
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option(
            "--reason", metavar="TEXT", help="Only by this rule, or with this in the reason.", show_default=False
        ),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", metavar="NAME", help="Only this tenant's.", show_default=False)
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", metavar=FLAG, help="Only those with status 400 and up.")] = False,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, metavar="N", help="How many to list.")] = 20,
    config: RunningConfig = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """List routing decisions and what came of them; with an ID, show one in full."""
    from deployments.cli.place import find_place
    from deployments.cli.record_views import open_records, show_list, show_one, warn_of_losses
    from deployments.cli.since import since_time
    from deployments.records.reader import RecordsUnreadableError, Wanted

    place = find_place(state_dir)
    reader = open_records(config, place)
    after = since_time(since)
    try:
        if request is not None:
            found = reader.find(request)
            if not found:
                remedy = (
                    f"`{place.command('records')}` lists what is there. Requests are there a second after they end."
                )
                raise CliError(f"there is no record of {request}", remedy)
            if json:
                output.print_json(found)
                return
            for row in found:
                show_one(row)
            return
        rows = reader.decisions(Wanted(model, reason, tenant, after, failed), limit)
        lost = reader.lost(after)
    except RecordsUnreadableError as error:
        raise CliError(str(error)) from None
    if json:
        output.print_json({"records": rows, "lost": lost})
        return
    if rows:
        show_list(rows)
    else:
        output.print_line("There are no such records.")
    warn_of_losses(lost)
