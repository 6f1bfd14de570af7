"""What `pointsman precision` shows: where each replica stands on its ladder, and why it can go no further."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Group
from rich.live import Live
from rich.text import Text

from deployments.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deployments.cli.api import Api

PATH = "/v1/precision"
WATCH_S = 0.5
"""Seconds between two looks of `--watch`."""
_REPLICA_LETTERS = 6
_STYLES = ("green", "yellow", "dark_orange", "red", "bold red")


class ReplicaView(msgspec.Struct, frozen=True):
    """One replica, as the ingress tells of it."""

    id: str
    level: int
    level_name: str
    level_age_s: float | None
    switching: bool
    weights: str
    kv_precision: str
    kv_usage: float
    kv_blocks: int
    running: int
    waiting: int
    preemptions: int
    preemptions_per_s: float
    switches: int
    unusable: dict[str, str] = {}
    kv_retry: str | None = None
    kv_blockers: tuple[str, ...] = ()


class ModelView(msgspec.Struct, frozen=True):
    """One model and its replicas."""

    level: int
    pinned: int | None
    twin: str | None
    kv_quality: dict[str, dict[str, float]]
    replicas: tuple[ReplicaView, ...] = ()


class PrecisionView(msgspec.Struct, frozen=True):
    """All of it."""

    enabled: bool
    levels: tuple[str, ...]
    models: dict[str, ModelView]


def show(api: Api, *, as_json: bool, watch: bool) -> None:
    """Show it once, or until Ctrl-C. Raises `CliError`."""
    if as_json:
        output.print_json(api.get(PATH, dict[str, Any]))
        return
    if not watch:
        output.stdout().print(drawn(api.get(PATH, PrecisionView)))
        return
    with Live(drawn(api.get(PATH, PrecisionView)), console=output.stdout(), auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_S)
            live.update(drawn(api.get(PATH, PrecisionView)), refresh=True)


def drawn(view: PrecisionView) -> RenderableType:
    """The table of replicas, and remarks below it."""
    numbers = ("for", "blocks", "KV used", "running", "waiting", "preempted", "switches")
    table = output.table("model", "replica", "level", "held", "KV", "weights", *numbers, right=numbers)
    for name, model in view.models.items():
        for replica in model.replicas:
            style = _STYLES[min(replica.level, len(_STYLES) - 1)]
            label = f"{replica.level} {replica.level_name}" + (" (changing)" if replica.switching else "")
            table.add_row(
                output.visible(name),
                output.visible(replica.id[-_REPLICA_LETTERS:]),
                Text(label, style=style),
                "pinned" if model.pinned is not None else "",
                output.visible(replica.kv_precision),
                output.visible(replica.weights),
                "" if replica.level_age_s is None else output.duration(replica.level_age_s),
                str(replica.kv_blocks),
                f"{replica.kv_usage:.0%}",
                str(replica.running),
                str(replica.waiting),
                f"{replica.preemptions} ({replica.preemptions_per_s:.1f}/s)",
                str(replica.switches),
            )
    remarks = [Text(line, style="dim") for line in _remarks(view)]
    return Group(table, *([Text()] if remarks else []), *remarks)


def _remarks(view: PrecisionView) -> list[str]:
    ladder = " → ".join(f"{number} {output.visible(name)}" for number, name in enumerate(view.levels))
    lines = [f"ladder  {ladder}" if view.enabled else "The ladder is off (`precision.enabled: false`)."]
    for name, model in view.models.items():
        for kv, one in model.kv_quality.items():
            figures = f"{one['agreement']:.1%} of tokens the same, KL {one['kl']:.2g}, {one['consistency']:.0%} of answers the same"
            lines.append(f"{name}: {kv} keeps {figures}")
        lines += [
            output.visible(f"{name} {replica.id[-_REPLICA_LETTERS:]}: {replica.kv_retry}")
            for replica in model.replicas
            if replica.kv_retry is not None
        ]
        # Replicas of one model are alike.
        for replica in model.replicas[:1]:
            blockers = "; ".join(replica.kv_blockers)
            for measure, why in replica.unusable.items():
                also = f" ({blockers})" if measure == "fp8_kv" and blockers else ""
                lines.append(output.visible(f"{name}: {measure} is left out: {why}{also}"))
    return lines
