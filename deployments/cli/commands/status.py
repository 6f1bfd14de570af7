"""`pointsman status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from deployments.cli import output
from deployments.cli.errors import ExitCode
from deployments.cli.options import ApiKey, Json, StateDir

if TYPE_CHECKING:
    from deployments.cli.place import Place
    from deployments.cli.snapshot import ModelStatus, Snapshot

_STYLES = {"ready": "green", "starting": "yellow", "degraded": "yellow", "stopping": "yellow", "failed": "red"}


def status(state_dir: StateDir = None, key: ApiKey = None, json: Json = False) -> ExitCode:
    """Show models, load and memory of the running cluster. Exit status 3 if there is none."""
    from deployments.cli.place import find_place, not_running
    from deployments.cli.snapshot import take_snapshot

    place = find_place(state_dir)
    state = place.state
    if state is None:
        error = not_running(place)
        if not json:
            raise error
        output.print_json({"running": False, "state_dir": str(place.state_dir), "reason": error.message})
        return ExitCode.REFUSED
    snapshot = take_snapshot(state, place.state_dir, key)
    if json:
        output.print_json(_as_json(snapshot, place))
    else:
        _show(snapshot, place)
    return ExitCode.OK


def _show(snapshot: Snapshot, place: Place) -> None:
    state = snapshot.state
    output.print_line(
        (state.phase.value, f"bold {_STYLES.get(state.phase.value, '')}".strip()),
        f"  {state.url}/v1",
        (f"  head process {state.pid}, up {output.duration(snapshot.uptime_s)}", "dim"),
    )
    if state.message:
        output.print_line(f"  {output.visible(state.message)}")
    output.print_line()
    numbers = ("replicas", "ready after", "running", "waiting", "KV")
    table = output.table("model", "state", "kind", "roles", "engine", *numbers, right=numbers)
    for model in snapshot.models:
        table.add_row(
            model.name,
            Text(model.phase, style=_STYLES.get(model.phase, "")),
            model.kind or "",
            ", ".join(model.roles or ()),
            model.engine or "",
            _number(model.replicas),
            output.duration(model.ready_after_s) if model.ready_after_s is not None else "",
            _number(model.running),
            _number(model.waiting),
            f"{model.kv_usage:.0%}" if model.kv_usage is not None else "",
        )
    output.stdout().print(table)
    for model in snapshot.models:
        if model.message:
            output.print_line((f"  {model.name}: ", "bold"), output.visible(model.message))
    output.print_line()
    total = sum(group.pss_bytes for group in snapshot.groups)
    processes = sum(len(group.pids) for group in snapshot.groups)
    output.print_line(("memory ", "bold"), f"{output.size(total)} in {processes} processes (PSS)")
    for group in snapshot.groups:
        name = group.name if group.model is None else f"{group.name} of {group.model}"
        output.print_line(f"  {name:<20} {output.size(group.pss_bytes):>9}  {len(group.pids):>3}")
    output.print_line(("traces ", "bold"), f"{output.size(snapshot.trace_store_bytes)}")
    output.print_line(("state  ", "bold"), str(place.state_dir))
    output.print_line(("config ", "bold"), state.config_path)
    for remark in snapshot.remarks:
        output.warn(remark)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _as_json(snapshot: Snapshot, place: Place) -> dict[str, object]:
    state = snapshot.state
    return {
        "running": True,
        "phase": state.phase.value,
        "message": state.message,
        "url": state.url,
        "answering": snapshot.answering,
        "pid": state.pid,
        "cluster_id": state.cluster_id,
        "uptime_s": round(snapshot.uptime_s, 1),
        "ready_after_s": state.ready_after_s,
        "state_dir": str(place.state_dir),
        "config": state.config_path,
        "models": {model.name: _model(model) for model in snapshot.models},
        "memory": {
            "pss_bytes": sum(group.pss_bytes for group in snapshot.groups),
            "groups": [
                {
                    "group": group.name,
                    "model": group.model,
                    "processes": len(group.pids),
                    "pids": list(group.pids),
                    "pss_bytes": group.pss_bytes,
                }
                for group in snapshot.groups
            ],
        },
        "trace_store_bytes": snapshot.trace_store_bytes,
        "remarks": list(snapshot.remarks),
    }


def _model(model: ModelStatus) -> dict[str, object]:
    return {
        "phase": model.phase,
        "message": model.message,
        "kind": model.kind,
        "roles": list(model.roles) if model.roles is not None else None,
        "engine": model.engine,
        "replicas": model.replicas,
        "ready_after_s": model.ready_after_s,
        "running": model.running,
        "waiting": model.waiting,
        "kv_usage": model.kv_usage,
    }
