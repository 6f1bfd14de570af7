"""`pointsman dashboards`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli import output
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.groups import FLAG, Command
from deployments.cli.options import Json

if TYPE_CHECKING:
    from deployments.dashboards.push import Pushed

CREDENTIAL_VARIABLE = "GRAFANA_TOKEN"
"""Where the token is taken from: arguments can be read by everybody on the machine."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

app = typer.Typer(help="Bring the dashboards to Grafana, or write them to files.", no_args_is_help=True)


@app.command("show", cls=Command)
def show(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write each to a file in this directory.", show_default=False, file_okay=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the dashboards, or write their JSON, as Grafana imports and provisions it."""
    from deployments.dashboards.catalog import DASHBOARDS, file_name
    from deployments.dashboards.grafana_json import to_json, to_text

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for dashboard in DASHBOARDS:
            (out / file_name(dashboard)).write_text(to_text(dashboard), encoding="utf-8")
        output.remark(f"Wrote {len(DASHBOARDS)} dashboards to {out}.")
    if json:
        output.print_json([to_json(dashboard) for dashboard in DASHBOARDS])
    elif out is None:
        table = output.table("uid", "title", "panels", "what it shows", right=("panels",))
        for dashboard in DASHBOARDS:
            table.add_row(dashboard.uid, dashboard.title, str(len(dashboard.panels())), dashboard.description)
        output.stdout().print(table)


@app.command("push", cls=Command)
def push(
    url: Annotated[
        str,
        typer.Option(
            "--grafana-url",
            envvar="GRAFANA_URL",
            metavar="URL",
            help="Where Grafana is, with its path if it has one.",
            show_default=False,
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar=FLAG, help="Print what would change, and change nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Bring the dashboards to Grafana; those that are as they should be are left alone.

    The token of a service account is taken from GRAFANA_TOKEN.
    """
    from urllib.parse import urlsplit

    from deployments.dashboards.catalog import DASHBOARDS
    from deployments.dashboards.push import AddressError, Grafana, GrafanaRefusedError

    token = os.environ.get(CREDENTIAL_VARIABLE, "").strip()
    if not token:
        raise CliError(
            f"there is no token for Grafana in {CREDENTIAL_VARIABLE}",
            f"Make one in Grafana (Administration, Service accounts), then export {CREDENTIAL_VARIABLE}=...",
            ExitCode.USAGE,
        )
    if not token.isascii() or not token.isprintable():
        raise CliError(f"what {CREDENTIAL_VARIABLE} holds is no token", "Copy it anew from Grafana.", ExitCode.USAGE)
    try:
        grafana = Grafana(url, token)
    except AddressError as error:
        raise CliError(str(error), "For example: --grafana-url https://grafana.example.com", ExitCode.USAGE) from None
    if url.startswith("http:") and urlsplit(url).hostname not in _LOOPBACK:
        output.warn("the token goes to Grafana unencrypted; use https://")
    done = []
    try:
        with grafana:
            for pushed in grafana.push(DASHBOARDS, dry_run=dry_run):
                done.append(pushed)
                if not json:
                    _tell(pushed, dry_run=dry_run)
    except GrafanaRefusedError as error:
        raise CliError(str(error), error.remedy) from None
    if json:
        output.print_json(
            [{"uid": one.uid, "outcome": one.outcome.value, "difference": list(one.difference)} for one in done]
        )


def _tell(pushed: Pushed, *, dry_run: bool) -> None:
    """One line for a dashboard; in a dry run the difference on stdout, and the line beside it."""
    if not dry_run:
        output.print_line(f"{pushed.title}: {pushed.outcome}")
        return
    for line in pushed.difference:
        output.print_line(line)
    output.remark(f"{pushed.title}: {'would be ' if pushed.difference else ''}{pushed.outcome}")
