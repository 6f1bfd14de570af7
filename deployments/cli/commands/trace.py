"""`pointsman trace`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.cli import output
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.groups import FLAG
from deployments.cli.options import Json, StateDir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deployments.telemetry.reader import TraceReader
    from deployments.telemetry.spans import StoredSpan

WAIT_S = 2.0
"""How long a trace may take to be in the store: spans are written in batches, a moment after they end."""

SETTLED_S = 1.0
"""A trace whose last span ended longer ago than this is complete."""

_POLL_S = 0.1


def trace(
    trace_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="A trace id, or its first digits.", show_default=False)
    ] = None,
    last: Annotated[bool, typer.Option("--last", metavar=FLAG, help="The newest trace.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, metavar="N", help="How many to list.")] = 20,
    all_attributes: Annotated[
        bool, typer.Option("--all", metavar=FLAG, help="Show every attribute of every span.")
    ] = False,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Draw a trace as a tree with durations; without an ID, list the latest."""
    from deployments.cli.place import find_place
    from deployments.paths import traces_path
    from deployments.telemetry.reader import TraceIdError, TraceReader
    from deployments.telemetry.render import list_to_json, render_trace, render_trace_list, to_json
    from deployments.telemetry.store_file import StoreUnavailableError

    place = find_place(state_dir)
    path = traces_path(place.state_dir)
    try:
        with TraceReader(path) as reader:
            if trace_id is None and not last:
                traces = reader.list_traces(limit=limit)
                if json:
                    typer.echo(list_to_json(traces))
                elif traces:
                    output.stdout().print(render_trace_list(traces))
                    draw = f"`{place.command('trace ID')}` draws one; the first digits of the id will do."
                    output.remark((draw, "dim"))
                else:
                    output.print_line(f"There are no traces in {path} yet; `{place.command('chat HELLO')}` makes one.")
                return
            spans = _newest(reader) if trace_id is None else _settled(reader, trace_id)
    except TraceIdError as error:
        raise CliError(str(error), code=ExitCode.USAGE) from None
    except StoreUnavailableError as error:
        raise CliError(str(error)) from None
    if not spans:
        what = "there are no traces" if trace_id is None else f"there is no trace {trace_id}"
        raise CliError(
            f"{what} in {path}",
            f"`{place.command('trace')}` lists what is there. Traces are kept there with `telemetry.traces: store`; "
            "the oldest leave first.",
        )
    if json:
        typer.echo(to_json(spans))
    else:
        output.stdout(output.DRAWING_WIDTH).print(render_trace(spans, all_attributes=all_attributes))


def _newest(reader: TraceReader) -> Sequence[StoredSpan]:
    traces = reader.list_traces(limit=1)
    return _settled(reader, traces[0].trace_id) if traces else ()


def _settled(reader: TraceReader, trace_id: str) -> Sequence[StoredSpan]:
    """The trace, once it is there and its processes have had time to write all of it."""
    deadline = time.monotonic() + WAIT_S
    while True:
        spans = reader.get_trace(trace_id)
        ended_s = max((span.end_ns for span in spans), default=0) / 1e9
        settled = bool(spans) and not 0 <= time.time() - ended_s < SETTLED_S
        if settled or time.monotonic() > deadline:
            return spans
        time.sleep(_POLL_S)
