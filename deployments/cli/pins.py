"""Holds a model at a level of its precision ladder, or lets pressure decide again: a change of the config in force."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli import output
from deployments.cli.apply import ApplyOptions, bring_into_force
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.place import find_place
from deployments.head.state import read_config_in_force

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig


def set_pin(model: str, level: str | None, state_dir: Path | None, *, as_json: bool) -> None:
    """Pin `model` at `level`, a number or a name; None: release it. Raises `CliError`."""
    from cluster.config.changes import plan_changes
    from cluster.precision.measures import name_of

    place = find_place(state_dir)
    state = place.require_state()
    old = read_config_in_force(place.state_dir)
    if old is None:
        raise CliError(f"the cluster is {state.phase.value}", "Try again once it serves.", ExitCode.REFUSED)
    if model not in old.models:
        raise CliError(f"there is no model {model}", f"Models: {', '.join(old.models)}.", ExitCode.USAGE)
    number = None if level is None else level_number(old, level)
    before = old.models[model].precision.pinned
    new = _pinned(old, model, number)
    plan = plan_changes(old, new)
    if plan.steps:
        options = ApplyOptions(Path(state.config_path), state_dir, json=as_json)
        bring_into_force(options, new, plan, place, state)
    if as_json:
        output.print_json({"model": model, "pinned": number, "before": before})
    elif number is None:
        said = "is decided by pressure again" if before is not None else "was not pinned"
        output.print_line((f"{model} {said}.", "bold green"))
    else:
        name = name_of(old.precision.levels, number)
        output.print_line((f"{model} is held at level {number} ({name}).", "bold green"))
        command = place.command(f"precision release {model}")
        output.print_line(
            f"`{command}` lets pressure decide again; so does the next `config apply` of a file without the pin."
        )


def level_number(config: ClusterConfig, level: str) -> int:
    """The level that a user names, by number or by its measure. Raises `CliError`."""
    names = ["normal", *(measure.value for measure in config.precision.levels)]
    if level in names:
        return names.index(level)
    if level.isdecimal() and int(level) < len(names):
        return int(level)
    known = ", ".join(f"{number} or {name}" for number, name in enumerate(names))
    raise CliError(f"there is no level {output.visible(level)}", f"Levels: {known}.", ExitCode.USAGE)


def _pinned(config: ClusterConfig, model: str, level: int | None) -> ClusterConfig:
    from cluster.config.in_force import in_force

    document = in_force(config)
    document["models"][model]["precision"]["pinned"] = level
    # Checked as a whole, as any other config.
    return type(config).model_validate(document)
