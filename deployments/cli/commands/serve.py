"""`pointsman serve`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from deployments.cli.errors import ExitCode
from deployments.cli.options import Foreground, Json, OwnStateDir, StartTimeout


def serve(  # noqa: PLR0913, PLR0917 - every option is an argument
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="embedded:NAME, hf:ORG/NAME, ORG/NAME, path:/DIR or a folder.", show_default=False
        ),
    ],
    kv_window: Annotated[
        int | None,
        typer.Option(
            "--kv-window",
            min=16,
            metavar="TOKENS",
            help="KV that a sequence may hold; older turns leave by a sliding window, and answers say how many. "
            "Default: no window.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=4096, metavar="N", help="Sequences that run at once.")
    ] = 8,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            "--max-model-len",
            min=16,
            metavar="TOKENS",
            help="Prompt and answer together. Default: the model's own limit; without a GPU at most 4096.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        Literal["dense", "sparse", "mini"] | None,
        typer.Option(
            "--kind",
            help="What the model is made of. Default: what the embedded model is, else dense.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="What requests call it. Default: made of MODEL.", show_default=False
        ),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65_535, metavar="PORT", help="Port to listen on, on loopback.")
    ] = 8000,
    state_dir: OwnStateDir = None,
    foreground: Foreground = False,
    timeout: StartTimeout = None,
    json: Json = False,
) -> ExitCode:
    """Serve one model: a cluster of its own, in one command.

    Writes the config that it makes into the state directory and starts it as `up` does.
    """
    from cluster.config.base import Kind
    from deployments.cli.launch import LaunchOptions, check_surroundings, launch, prepare
    from deployments.cli.one_model import (
        Shape,
        Wish,
        checked,
        config_text,
        has_gpu,
        name_of,
        read_shape,
        source_of,
        write_config,
    )
    from deployments.cli.place import find_place

    source = source_of(model)
    wish = Wish(source, Kind(kind) if kind is not None else None, kv_window, batch_size, max_model_len, port, name)
    called = name or name_of(source)
    place = find_place(state_dir)
    # The model says later how large it is; what is wrong with the rest is better known before it is downloaded.
    provisional = checked(config_text(wish, Shape(), accelerated=has_gpu()))
    if place.state is None:
        check_surroundings(provisional, place)
    shape = read_shape(prepare({called: source})[called])
    text = config_text(wish, shape, accelerated=has_gpu())
    checked(text)
    path = write_config(text, place.state_dir)
    return launch(LaunchOptions(path, state_dir, foreground, timeout, json))
