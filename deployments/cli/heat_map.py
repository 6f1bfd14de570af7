"""Draws how hot experts are: a row per layer, a cell per expert, shaded by its share of the layer's tokens."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.text import Text

BOUNDS: Final = (0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 3.0)
"""Upper ends of the shades, as multiples of the even share; what is beyond the last has the last shade."""

_SHADES: Final = "▁▂▃▄▅▆▇█"
_PLAIN_SHADES: Final = ".:-=+*#@"
_STYLES: Final = ("blue", "blue", "cyan", "default", "yellow", "dark_orange", "red", "bold red")
_NOTHING: Final = "·"
_PLAIN_NOTHING: Final = " "
_WIDEST: Final = 3
"""Columns of one expert at most."""


@dataclass(frozen=True, slots=True)
class Row:
    """One layer, or several that are drawn as one: each cell is the hottest of theirs."""

    label: str
    layers: range
    cells: tuple[float, ...]
    """Multiples of the even share; 0: no tokens."""

    def of(self, values: Sequence[float], one: Callable[[Sequence[float]], float] = max) -> float:
        """The figure of its layers out of the `values` of all layers: the largest, or as `one` says."""
        return one([values[layer] for layer in self.layers])


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A model's shares (layers x experts), made to fit."""

    rows: tuple[Row, ...]
    experts_each: int
    """Experts that share a cell."""
    layers_each: int
    """Layers that share a row."""
    cell: int
    """Columns of a cell."""

    @classmethod
    def fit(cls, shares: Sequence[Sequence[float]], columns: int, rows: int | None = None) -> HeatMap:
        """`shares` on so many columns and rows of the terminal, at least one of each; rows None: as many as there are layers."""
        layers, experts = len(shares), len(shares[0])
        experts_each = math.ceil(experts / max(1, columns))
        layers_each = 1 if rows is None else math.ceil(layers / max(1, rows))
        cells = math.ceil(experts / experts_each)
        made = []
        for start in range(0, layers, layers_each):
            block = range(start, min(start + layers_each, layers))
            label = str(start) if len(block) == 1 else f"{start}-{block[-1]}"
            hottest = [max(shares[layer][expert] for layer in block) * experts for expert in range(experts)]
            folded = (max(hottest[at : at + experts_each]) for at in range(0, experts, experts_each))
            made.append(Row(label, block, tuple(folded)))
        return cls(tuple(made), experts_each, layers_each, max(1, min(_WIDEST, columns // cells)))

    def drawn(self, row: Row, *, plain: bool) -> Text:
        """The cells of one row; `plain` for encodings that have no blocks."""
        text = Text(no_wrap=True)
        for times in row.cells:
            text.append(shade(times, plain=plain) * self.cell, style_of(times))
        return text

    def ruler(self) -> str:
        """Numbers of experts, each above the cell that begins with it."""
        line = ""
        for number in range(len(self.rows[0].cells)):
            at = number * self.cell
            if not line or at > len(line):
                line = line.ljust(at) + str(number * self.experts_each)
        return line

    def folded(self) -> str:
        """What shares a cell, for people; empty: nothing does."""
        parts = []
        if self.experts_each > 1:
            parts.append(f"a cell is the hottest of {self.experts_each} experts")
        if self.layers_each > 1:
            parts.append(f"a row is {self.layers_each} layers, the hottest of each")
        return ", ".join(parts)


def shade(times: float, *, plain: bool) -> str:
    """The character for a share that is `times` the even one."""
    if times <= 0:
        return _PLAIN_NOTHING if plain else _NOTHING
    return (_PLAIN_SHADES if plain else _SHADES)[bisect_left(BOUNDS, times)]


def style_of(times: float) -> str:
    """Its colour."""
    return "dim" if times <= 0 else _STYLES[bisect_left(BOUNDS, times)]


def legend(*, plain: bool) -> Text:
    """What the shades mean."""
    text = Text("times the even share:  ", style="dim")
    for bound in BOUNDS:
        text.append(shade(bound, plain=plain), style_of(bound)).append(f" to {bound:g}  ", "dim")
    beyond = BOUNDS[-1] + 1
    text.append(shade(beyond, plain=plain), style_of(beyond)).append(" more", "dim")
    return text if plain else text.append(f"  {_NOTHING} no tokens", "dim")
