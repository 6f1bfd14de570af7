"""What `pointsman experts` shows of pools of experts: a table of them, what they lack, and their last changes in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from deployments.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from cluster.experts.pools_view import ChangeView, PoolView
    from deployments.cli.pools_views import PoolsTold

MAX_POOLS: Final = 24
"""Pools that are listed, those that lack replicas or are used most; there may be hundreds."""
MAX_LACKING: Final = 6
"""Pools of which is said what they lack."""
MAX_CHANGES: Final = 5
"""Changes that are listed, the newest first."""
_BAR: Final = 8
"""Columns of the bar that shows how much of a pool's capacity is used."""
_FULL: Final = 0.8
"""Share of its capacity from which a pool's bar is drawn as a warning."""
_MIB: Final = 2**20


def drawn_pools(told: PoolsTold, *, plain: bool) -> list[RenderableType]:
    """The pools of one model; `plain` for encodings that have no blocks."""
    if told.unavailable:
        return [Text(output.visible(f"It is not known how its pools of experts stand: {told.unavailable}."), "yellow")]
    parts: list[RenderableType] = [_heading(told)]
    if told.stale:
        why = f": {told.failed}" if told.failed else ""
        parts.append(Text(output.visible(f"This is stale, {output.duration(told.age_s)} old{why}."), "yellow"))
    if told.pools:
        parts.append(_table(told.pools, plain=plain))
    if (hidden := len(told.pools) - MAX_POOLS) > 0:
        parts.append(Text(f"and {hidden} more", style="dim"))
    parts += _remarks(told.pools)
    if told.changes:
        parts += [Text(), Text("last changes of replicas", style="bold"), _changes(told)]
    return parts


def lines_of(told: PoolsTold) -> int:
    """Lines that `drawn_pools` takes on a terminal that is wide enough, about, and the empty one above."""
    if told.unavailable:
        return 2
    lacking = min(MAX_LACKING, sum(bool(_remark(pool)) for pool in told.pools))
    changes = min(len(told.changes), MAX_CHANGES)
    return 3 + min(len(told.pools), MAX_POOLS) + lacking + (2 + changes if changes else 0)


def _heading(told: PoolsTold) -> Text:
    replicas = [replica for pool in told.pools for replica in pool.replicas]
    parked = sum(_is_parked(pool) for pool in told.pools)
    weights = output.size(sum(replica.weight_bytes for replica in replicas))
    bound = f" of {output.size(told.memory_bytes)}" if told.memory_bytes else ""
    facts = [f"replicas that answer: {len(replicas)}", f"weights: {weights}{bound}", f"map version {told.version}"]
    if parked:
        facts.append(f"{parked} parked")
    if told.moved_pairs:
        facts.append(f"{told.moved_pairs} experts moved")
    return Text.assemble((f"pools of experts: {len(told.pools)}", "bold"), "  ", ", ".join(facts))


def _table(pools: Sequence[PoolView], *, plain: bool) -> RenderableType:
    numbers = ("experts", "replicas", "pairs/s", "of capacity", "weights MiB", "overhead MiB")
    table = output.table("pool", *numbers, right=numbers)
    table.columns[0].no_wrap = True
    for pool in _most_telling(pools):
        weights = sum(replica.weight_bytes for replica in pool.replicas)
        overhead = sum(replica.overhead_bytes for replica in pool.replicas)
        table.add_row(
            output.visible(pool.name),
            str(pool.experts),
            f"{len(pool.replicas)}/{pool.target}",
            f"{pool.pairs_per_s:.0f}",
            _used(pool, plain=plain),
            f"{weights / _MIB:.1f}",
            f"{overhead / _MIB:.1f}",
        )
    return table


def _most_telling(pools: Sequence[PoolView]) -> list[PoolView]:
    """At most `MAX_POOLS`, in their order."""
    ranked = sorted(
        range(len(pools)), key=lambda number: (not _lacking(pools[number]), -(_share(pools[number]) or 0.0))
    )
    return [pools[number] for number in sorted(ranked[:MAX_POOLS])]


def _share(pool: PoolView) -> float | None:
    """What comes by what the replicas that answer can compute; None: none does."""
    capacity = pool.capacity_pairs_per_s * len(pool.replicas)
    return pool.pairs_per_s / capacity if capacity > 0 else None


def _used(pool: PoolView, *, plain: bool) -> Text:
    if not pool.replicas:
        return Text("none answers", style="red") if pool.target else Text("parked", style="dim")
    share = _share(pool)
    if share is None:
        return Text("not known", style="dim")
    full, empty = ("#", ".") if plain else ("█", "░")
    cells = min(_BAR, round(share * _BAR))
    style = "red" if share > 1 else "yellow" if share >= _FULL else "green"
    return Text.assemble((full * cells, style), (empty * (_BAR - cells), "dim"), f" {share:>4.0%}")


def _remarks(pools: Sequence[PoolView]) -> list[RenderableType]:
    """Why pools have other replicas than they are to have."""
    lines = [(pool, remark) for pool in pools if (remark := _remark(pool))]
    shown: list[RenderableType] = [
        Text(output.visible(f"{pool.name}: {remark}"), style="dim" if not pool.target else "yellow")
        for pool, remark in lines[:MAX_LACKING]
    ]
    if len(lines) > MAX_LACKING:
        shown.append(Text(f"and {len(lines) - MAX_LACKING} more that lack replicas or are being parked", style="dim"))
    if any(_is_parked(pool) for pool in pools):
        shown.append(Text("A parked pool has no replica until a token needs one of its experts.", style="dim"))
    return shown


def _remark(pool: PoolView) -> str:
    if pool.lacks:
        return f"can have no more replicas now: {pool.lacks}"
    if not pool.target:
        return "being parked" if pool.replicas else ""
    missing = pool.target - len(pool.replicas)
    if missing > 0:
        return f"{missing} of its replicas {'does' if missing == 1 else 'do'} not answer yet"
    return ""


def _is_parked(pool: PoolView) -> bool:
    return not pool.target and not pool.replicas


def _lacking(pool: PoolView) -> bool:
    return bool(pool.lacks) or len(pool.replicas) < pool.target


def _changes(told: PoolsTold) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True, style="dim")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for change in reversed(told.changes[-MAX_CHANGES:]):
        ago = output.duration(max(0.0, told.now_s - change.at_s))
        table.add_row(f"{ago} ago", output.visible(change.pool), f"{change.before} -> {change.after}", _why(change))
    return table


def _why(change: ChangeView) -> str:
    took = "trunks not told yet" if change.took_s is None else f"told trunks after {output.duration(change.took_s)}"
    return output.visible(f"{change.cause}: {change.reason}; {took}")
