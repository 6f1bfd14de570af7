"""`pointsman precision`."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.cli.commands.precision_timeline import timeline
from deployments.cli.groups import FLAG, Command
from deployments.cli.options import ApiKey, Json, RunningConfig, StateDir

app = typer.Typer(help="See and steer how far precision is lowered under KV pressure.", invoke_without_command=True)

Watch = Annotated[bool, typer.Option("--watch", "-w", metavar=FLAG, help="Go on showing it until Ctrl-C.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model of the config.")]


@app.callback()
def precision(context: typer.Context) -> None:
    """See and steer how far precision is lowered under KV pressure. Without a command: `show`."""
    if context.invoked_subcommand is None:
        show()


@app.command("show", cls=Command)
def show(state_dir: StateDir = None, key: ApiKey = None, watch: Watch = False, json: Json = False) -> None:
    """Show the level, the KV precision and the pressure of every replica."""
    from deployments.cli.api import Api
    from deployments.cli.place import find_place
    from deployments.cli.precision_show import show as show_all

    place = find_place(state_dir)
    show_all(Api(place.require_state().url, key, place), as_json=json, watch=watch)


@app.command("pin", cls=Command)
def pin(
    model: Model,
    level: Annotated[str, typer.Argument(metavar="LEVEL", help="Number of the level, or its measure, as `fp8_kv`.")],
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Hold a model at a level, whatever the pressure."""
    from deployments.cli.pins import set_pin

    set_pin(model, level, state_dir, as_json=json)


@app.command("release", cls=Command)
def release(model: Model, state_dir: StateDir = None, json: Json = False) -> None:
    """Let pressure decide the level of a model again."""
    from deployments.cli.pins import set_pin

    set_pin(model, None, state_dir, as_json=json)


app.command("timeline", cls=Command)(timeline)


@app.command("measure", cls=Command)
def measure(
    model: Model,
    config: RunningConfig = None,
    state_dir: StateDir = None,
    prompts: Annotated[int, typer.Option(min=3, max=75, help="Prompts of chat, code and prose, a third of each.")] = 60,
    tokens: Annotated[int, typer.Option(min=4, max=512, help="Tokens of an answer at most.")] = 64,
    json: Json = False,
) -> None:
    """Measure a model's answers at lower KV precisions against those at its own, on an engine started for that."""
    from deployments.cli.config_files import config_in_force, load_config
    from deployments.cli.kv_quality import measure_model
    from deployments.cli.kv_quality import show as show_quality
    from deployments.cli.place import find_place

    in_force = load_config(config_in_force(config, find_place(state_dir)))
    show_quality(model, measure_model(in_force, model, prompts, tokens), in_force.precision, as_json=json)
