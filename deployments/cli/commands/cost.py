"""`pointsman cost`."""

from __future__ import annotations

from deployments.cli import output
from deployments.cli.errors import CliError
from deployments.cli.options import Json, RunningConfig, StateDir
from deployments.cli.since import Since

GROUPS = ("model", "rule", "tenant")
"""By what costs are added up: the models that worked, the rules that routed, the tenants that asked."""


def cost(since: Since = None, config: RunningConfig = None, state_dir: StateDir = None, json: Json = False) -> None:
    """Add up tokens, engine-seconds and money by model, rule and tenant, and the idle time of replicas."""
    from deployments.cli.place import find_place
    from deployments.cli.record_views import open_records, show_costs, show_replicas, warn_of_losses
    from deployments.cli.since import since_time
    from deployments.records.reader import RecordsUnreadableError

    reader = open_records(config, find_place(state_dir))
    after = since_time(since)
    try:
        sums = {kind: reader.costs(kind, after) for kind in GROUPS}
        replicas, lost = reader.replica_seconds(after), reader.lost(after)
    except RecordsUnreadableError as error:
        raise CliError(str(error)) from None
    if json:
        output.print_json({**{f"by_{kind}": rows for kind, rows in sums.items()}, "replicas": replicas, "lost": lost})
        return
    if not sums["model"] and not replicas:
        output.print_line("There are no records yet.")
    for kind, rows in sums.items():
        if rows:
            show_costs(kind, rows)
            output.print_line()
    if replicas:
        show_replicas(replicas, {row["model"]: row["engine_seconds"] for row in sums["model"]})
    warn_of_losses(lost)
