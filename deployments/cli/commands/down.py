"""`pointsman down`."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.cli import output
from deployments.cli.errors import ExitCode
from deployments.cli.options import Json, StateDir


def down(
    state_dir: StateDir = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0,
            metavar="SECONDS",
            help="End it by force after so long. Default: what its config gives it, and at least a minute.",
        ),
    ] = None,
    json: Json = False,
) -> ExitCode:
    """Stop the cluster and every process of it, also after its head process was killed."""
    from deployments.cli.place import find_place, head_runs
    from deployments.cli.progress import Waiting
    from deployments.cli.teardown import stop_cluster, stop_limit

    place = find_place(state_dir)
    state = place.noted
    if state is None:
        if json:
            output.print_json({"was_running": False, "seconds": 0.0, "swept": 0, "head_killed": False})
        else:
            output.print_line(f"No cluster is running (state directory {place.state_dir}).")
        return ExitCode.OK
    runs = head_runs(state)
    with Waiting("Stopping the cluster") as waiting:
        stopped = stop_cluster(
            place.state_dir,
            state.pid,
            state.cluster_id,
            stop_limit(state) if timeout is None else timeout,
            lambda doing: waiting.part("cluster", doing),
            head_runs=runs,
        )
    if json:
        output.print_json(
            {
                "was_running": runs,
                "seconds": round(stopped.seconds, 2),
                "swept": stopped.swept,
                "head_killed": stopped.head_killed,
            }
        )
        return ExitCode.OK
    if not runs and not stopped.swept:
        output.print_line("No cluster is running; the note that the last one left is removed.")
        return ExitCode.OK
    by_force = f", {stopped.swept} processes by force" if stopped.swept else ""
    output.print_line(f"Stopped in {output.duration(stopped.seconds)}{by_force}; no process is left.")
    return ExitCode.OK
