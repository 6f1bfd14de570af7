"""`python -m loadtests.run`: put load on any OpenAI-compatible server and print what it did."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from loadtests.driver import LoadPlan, drive
from loadtests.show import console, run_table, write_json
from loadtests.targets import TargetError, parse_target

application = typer.Typer(add_completion=False, help=__doc__)


@application.command()
def run(  # noqa: PLR0913 - each is an option of the command line
    *,
    model: Annotated[str, typer.Option(help="Name of the model, as the server knows it.")],
    url: Annotated[str, typer.Option(help="The server, with or without /v1.")] = "http://127.0.0.1:8000",
    streams: Annotated[int, typer.Option(help="Requests in flight at any time.")] = 16,
    requests: Annotated[int, typer.Option(help="Requests to measure.")] = 64,
    seconds: Annotated[float, typer.Option(help="Send no request after this many seconds.")] = 300.0,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 64,
    warm_up: Annotated[int, typer.Option(help="Requests before the measured ones.")] = 16,
    seed: Annotated[int, typer.Option(help="Series of prompts; the same seed sends the same prompts.")] = 0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Ask for exactly --max-tokens tokens.")] = False,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Load a server beyond loopback.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Closed-loop streaming load. Exits with 1 if any request failed, with 2 if it could not begin."""
    out = console()
    try:
        plan = LoadPlan(
            target=parse_target(url, key, allow_remote=allow_remote),
            model=model,
            streams=streams,
            requests=requests,
            seconds=seconds,
            max_tokens=max_tokens,
            warm_up=warm_up,
            seed=seed,
            ignore_eos=ignore_eos,
        )
    except (TargetError, ValueError) as error:
        out.print(str(error), style="red")
        raise typer.Exit(2) from None
    summary = asyncio.run(drive(plan))
    if as_json:
        write_json({"url": plan.target.root, "model": model, **summary.as_json()})
    else:
        out.print(run_table(f"{model} at {plan.target.root}", [("run", summary)]))
    if summary.errors:
        raise typer.Exit(1)


if __name__ == "__main__":
    application()
