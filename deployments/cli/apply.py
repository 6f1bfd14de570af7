"""Brings another config into force in a running cluster: check, compare, get what is new, hand over, watch. What `config apply` does."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli import output
from deployments.cli.config_files import load_config
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.head_process import config_hash, note_launch
from deployments.cli.launch import prepare
from deployments.cli.obtain import sources_of
from deployments.cli.place import Place, find_place
from deployments.cli.progress import Waiting
from deployments.head.locks import LockHeldError, take_lock
from deployments.head.mailbox import (
    ChangePhase,
    ChangeRequest,
    put_request,
    read_progress,
    withdraw_request,
)
from deployments.head.state import ClusterState, Phase, read_config_in_force

if TYPE_CHECKING:
    from cluster.config.changes import ChangePlan, Step
    from cluster.config.cluster import ClusterConfig

_LOCK_FILE = "change.lock"
_POLL_S = 0.1
_TAKEN_S = 30.0
"""Seconds in which the head process takes a request; it looks four times a second."""
_SLACK_S = 120.0
"""Seconds beyond the loading of models that a change may take."""
_SHOWN = 80
"""Characters of a value that are shown."""


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """What the user asked for."""

    file: Path
    state_dir: Path | None
    dry_run: bool = False
    timeout_s: float | None = None
    """Seconds that one model may take to load; None: its own `start_timeout_s`."""
    json: bool = False


def apply(options: ApplyOptions) -> ExitCode:
    """Show what changes, and bring it into force. Raises `CliError`; then the config before is in force."""
    from cluster.config.changes import plan_changes

    new = load_config(options.file)
    place = find_place(options.state_dir, new)
    state = place.require_state()
    old = read_config_in_force(place.state_dir)
    # A model that is being scaled, or replaced by Serve, starts replicas, too: that is no reason to refuse.
    if old is None or state.phase is Phase.STOPPING or (state.phase is Phase.STARTING and state.ready_after_s is None):
        raise CliError(
            f"the cluster is {state.phase.value}", "Try again once it serves; see `pointsman status`.", ExitCode.REFUSED
        )
    plan = plan_changes(old, new)
    if not options.json:
        _show(plan)
    if plan.refused:
        names = ", ".join(step.change.path for step in plan.refused)
        raise CliError(
            f"a running cluster cannot take on {names}; nothing was changed",
            f"Leave that as it is, or bring it into force with `{place.command('down')}` and `{place.command('up')}`.",
            ExitCode.REFUSED,
        )
    if plan.steps and not options.dry_run:
        bring_into_force(options, new, plan, place, state)
    if options.json:
        output.print_json(
            {"file": str(options.file), "applied": not options.dry_run, "changes": _described(plan.steps)}
        )
    elif not plan.steps:
        output.print_line((f"{options.file} is in force already.", "bold green"))
    elif options.dry_run:
        output.print_line("Nothing was changed (--dry-run).")
    else:
        output.print_line((f"{options.file} is in force.", "bold green"))
    return ExitCode.OK


def bring_into_force(
    options: ApplyOptions, new: ClusterConfig, plan: ChangePlan, place: Place, state: ClusterState
) -> None:
    """Have the head process change to `new`, and wait until it has. Raises `CliError`."""
    from cluster.config.changes import Way
    from cluster.config.in_force import in_force

    try:
        lock = take_lock(place.state_dir / _LOCK_FILE, "pointsman config apply")
    except LockHeldError:
        raise CliError(
            "another change is under way in this cluster", "Wait until it is done, then try again.", ExitCode.REFUSED
        ) from None
    with lock:
        loaded = (*plan.models(Way.ADD), *plan.models(Way.REPLACE))
        sources = {name: source for name, source in sources_of(new).items() if name in loaded}
        # `prepare` starts without a model that cannot be had; here nothing changes then.
        folders = prepare(sources, without_files=0) if sources else {}
        missing = [name for name in sources if name not in folders]
        if missing:
            raise CliError(f"{', '.join(missing)} cannot be had; nothing was changed")
        timeout_s = options.timeout_s or max(
            (new.models[name].replicas.start_timeout_s for name in loaded), default=60.0
        )
        request = ChangeRequest(
            id=uuid.uuid4().hex,
            config=json.dumps(in_force(new)),
            config_path=str(options.file.absolute()),
            model_paths={name: str(folders[name]) if name in folders else None for name in loaded},
            timeout_s=timeout_s,
        )
        put_request(place.state_dir, request)
        _follow(request, place, timeout_s * max(1, len(loaded)) + _SLACK_S)
        note_launch(place.state_dir, state.pid, config_hash(new))


def _follow(request: ChangeRequest, place: Place, limit_s: float) -> None:
    """Until it is done. Raises `CliError` if it failed, or if nobody does it."""
    began = time.monotonic()
    with Waiting("Bringing the config into force") as waiting:
        while True:
            progress = read_progress(place.state_dir, request.id)
            if progress is not None and progress.phase is ChangePhase.DONE:
                return
            if progress is not None and progress.phase is ChangePhase.FAILED:
                raise CliError(f"{progress.message}; the config before is still in force")
            if progress is not None and progress.message:
                waiting.part("cluster", progress.message)
            if place.state is None:
                raise CliError("the cluster ended while the config was changed", f"See `{place.command('status')}`.")
            elapsed = time.monotonic() - began
            if elapsed > (_TAKEN_S if progress is None else limit_s):
                withdraw_request(place.state_dir)
                raise CliError(
                    f"the head process did not finish the change in {output.duration(elapsed)}",
                    "See logs/head-*.jsonl in the state directory, and `pointsman status`.",
                )
            time.sleep(_POLL_S)


def _show(plan: ChangePlan) -> None:
    if not plan.steps:
        return
    table = output.table("field", "before", "after", "how")
    for step in plan.steps:
        table.add_row(step.change.path, _value(step.change.old), _value(step.change.new), step.way.value)
    output.stdout().print(table)


def _described(steps: Sequence[Step]) -> list[dict[str, object]]:
    return [
        {"path": step.change.path, "before": step.change.old, "after": step.change.new, "how": step.way.value}
        for step in steps
    ]


def _value(value: object) -> str:
    """One value as a person reads it, cut where it is long."""
    if value is None:
        return "-"
    text = ", ".join(f"{key}: {entry}" for key, entry in value.items()) if isinstance(value, dict) else str(value)
    return output.visible(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
