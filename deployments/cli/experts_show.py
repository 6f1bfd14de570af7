"""What `pointsman experts` shows: a heat map of each sparse model, its hot experts, and which requests were wide."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.live import Live
from rich.text import Text

from deployments.cli import output
from deployments.cli.experts_views import PATH, fetch_shown
from deployments.cli.heat_map import HeatMap, legend
from deployments.cli.pools_show import drawn_pools, lines_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType
    from rich.table import Table

    from deployments.cli.api import Api
    from deployments.cli.experts_views import ExpertsView, Hot, ModelView, Quantiles, Shares, Tail
    from deployments.cli.pools_views import PoolsTold

WATCH_S: Final = 0.5
"""Seconds between two looks of `--watch`."""
MAX_HOT: Final = 12
"""Hot experts that are listed; there may be hundreds."""
_BESIDE: Final = 42
"""Columns of the figures beside a map."""
_BELOW: Final = 16
"""Lines of a watched terminal that are for what is not a map."""
_FEWEST_ROWS: Final = 4
_REPLICA_LETTERS: Final = 6


def show(api: Api, *, model: str | None, by_traffic: bool, as_json: bool, watch: bool) -> None:
    """Show it once, or until Ctrl-C. Raises `CliError`."""
    if as_json:
        told = api.get(PATH, dict[str, Any])
        if model is not None:
            fetch_shown(api, model)
            for part in ("models", "silent_pools"):
                told[part] = {name: one for name, one in told.get(part, {}).items() if name == model}
        output.print_json(told)
        return
    console = output.stdout(output.DRAWING_WIDTH)
    if not watch:
        console.print(drawn(fetch_shown(api, model), console, by_traffic=by_traffic))
        return
    with Live(drawn(fetch_shown(api, model), console, by_traffic, True), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_S)
            live.update(drawn(fetch_shown(api, model), console, by_traffic, True), refresh=True)


def drawn(view: ExpertsView, console: Console, by_traffic: bool = False, live: bool = False) -> RenderableType:
    """All models; `live` makes the maps fit the terminal's height, too."""
    plain = console.options.ascii_only
    maps = sum(max(1, len(model.traffic)) if by_traffic else 1 for model in view.models.values())
    below = _BELOW + sum(lines_of(pools) for pools in _all_pools(view))
    rows = max(_FEWEST_ROWS, (console.height - below) // max(1, maps)) if live else None
    parts: list[RenderableType] = []
    for name, model in view.models.items():
        parts += [_heading(name, model), Text()]
        parts += _kinds(model, console.width, rows, plain) if by_traffic else [_map(model, console.width, rows, plain)]
        if model.pools is not None:
            parts += [Text(), *drawn_pools(model.pools, plain=plain)]
        parts += [Text(), *_hot(model.hot, view.hot)]
        if model.tail is not None and model.tail.requests:
            parts += [Text(), _tail(model.tail)]
        parts.append(Text())
    if view.models:
        parts.append(legend(plain=plain))
        parts.append(Text(f"A token counts half after {output.duration(view.half_life_s)}.", style="dim"))
    for name, why in view.silent.items():
        parts.append(Text(output.visible(f"{name} does not tell of its experts: {'; '.join(why)}"), style="dim"))
        if (pools := view.silent_pools.get(name)) is not None:
            parts += [*drawn_pools(pools, plain=plain), Text()]
    return Group(*parts)


def _all_pools(view: ExpertsView) -> list[PoolsTold]:
    told = [model.pools for model in view.models.values() if model.pools is not None]
    return [*told, *view.silent_pools.values()]


def _heading(name: str, model: ModelView) -> Text:
    shape = model.shape
    what = f"  {shape.layers} layers of {shape.experts} experts, {shape.top_k} for each token"
    replicas = ", ".join(f"{one.id[-_REPLICA_LETTERS:]} {one.tokens}" for one in model.replicas)
    told = f"  {model.tokens_per_s:.1f} tokens/s lately" if any(model.tokens) else "  no tokens lately"
    return Text.assemble(
        (output.visible(name), "bold"), what, told, (output.visible(f"  tokens by replica: {replicas}"), "dim")
    )


def _map(model: ModelView, width: int, rows: int | None, plain: bool) -> RenderableType:
    heat = HeatMap.fit(model.shares, width - _BESIDE, rows)
    table = output.table(
        "layer", heat.ruler(), "imbalance", "entropy", "tokens", right=("layer", "imbalance", "entropy", "tokens")
    )
    table.columns[1].no_wrap = True
    for row in heat.rows:
        figures = f"{row.of(model.imbalance):.2f}", f"{row.of(model.entropy, min):.2f}", f"{row.of(model.tokens):.0f}"
        table.add_row(row.label, heat.drawn(row, plain=plain), *figures)
    return _with_remark(table, heat)


def _kinds(model: ModelView, width: int, rows: int | None, plain: bool) -> list[RenderableType]:
    """A map for each kind of traffic."""
    if not model.traffic:
        return [Text("No request has ended yet, so it is not known which traffic heats what.", style="dim")]
    parts: list[RenderableType] = []
    for kind, shares in model.traffic.items():
        parts.append(Text(output.visible(kind) or "(not known)", style="bold cyan"))
        parts.append(_small_map(shares, width, rows, plain))
    return parts


def _small_map(shares: Shares, width: int, rows: int | None, plain: bool) -> RenderableType:
    heat = HeatMap.fit(shares, width - _BESIDE, rows)
    table = output.table("layer", heat.ruler(), "imbalance", right=("layer", "imbalance"))
    table.columns[1].no_wrap = True
    for row in heat.rows:
        table.add_row(row.label, heat.drawn(row, plain=plain), f"{max(row.cells):.2f}")
    return _with_remark(table, heat)


def _with_remark(table: Table, heat: HeatMap) -> RenderableType:
    remark = heat.folded()
    return Group(table, Text(f"To fit, {remark}.", style="dim")) if remark else table


def _hot(hot: Sequence[Hot], bound: float) -> list[RenderableType]:
    if not hot:
        return [Text(f"No expert is hot: none had {bound:g} times the even share for long enough.", style="dim")]
    numbers = ("layer", "expert", "share", "times even", "hot for")
    table = output.table(*numbers, "traffic", right=numbers)
    for one in hot[:MAX_HOT]:
        traffic = ", ".join(f"{part.name or 'not known'} {part.share:.0%}" for part in one.traffic)
        table.add_row(
            str(one.layer),
            str(one.expert),
            f"{one.share:.1%}",
            f"{one.times:.2f}",
            output.duration(one.age_s),
            output.visible(traffic),
        )
    parts: list[RenderableType] = [Text(f"hot experts: {len(hot)}", style="bold"), table]
    if len(hot) > MAX_HOT:
        parts.append(Text(f"and {len(hot) - MAX_HOT} more", style="dim"))
    return parts


def _tail(tail: Tail) -> RenderableType:
    numbers = ("requests", "share", "experts", "p50", "p95", "p99", "p50/token", "p95/token")
    table = output.table("experts used", *numbers, "", right=numbers)
    for row in tail.rows:
        if row.requests:
            table.add_row(
                f"{row.above:.0%} to {row.to:.0%}",
                str(row.requests),
                f"{row.share:.0%}",
                f"{row.distinct:.0f}",
                *_seconds(row.seconds, ("p50", "p95", "p99")),
                *_seconds(row.seconds_per_token, ("p50", "p95")),
                Text("rare", style="yellow") if row.rare else "",
            )
    return Group(Text(f"the last {tail.requests} requests by how many of the experts they used", style="bold"), table)


def _seconds(quantiles: Quantiles | None, which: Sequence[str]) -> list[str]:
    return ["" if quantiles is None else _short(getattr(quantiles, name)) for name in which]


def _short(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.0995 else output.duration(seconds)
