"""What a dashboard is made of, without Grafana's form of it (`grafana_json`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MODELS = 'model=~"$model"'
"""Selects the series of the models that the reader of a dashboard chose."""
RATE = "$__rate_interval"
"""Grafana's window for `rate`: at least four scrapes, and wider where a point stands for more."""


class Kind(StrEnum):
    """How a panel shows its numbers, by Grafana's names of panels."""

    LINES = "timeseries"
    NUMBER = "stat"
    HEAT_MAP = "heatmap"
    TABLE = "table"
    TEXT = "text"


class Unit(StrEnum):
    """Grafana's names of units."""

    COUNT = "short"
    RATIO = "percentunit"
    SECONDS = "s"
    BYTES = "bytes"
    REQUESTS = "reqps"
    PER_SECOND = "cps"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression. `legend` names its series by labels in `{{...}}`."""

    expr: str
    legend: str = ""
    exemplar: bool = False
    """Whether exemplars are asked for, too: single requests, with links to their traces."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """For a table: a cell for each pair of two labels' values."""

    rows: str
    columns: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture, and the question that it answers."""

    title: str
    description: str
    queries: tuple[Query, ...] = ()
    kind: Kind = Kind.LINES
    unit: Unit = Unit.COUNT
    most: float | None = None
    """Upper end of the axis or of the colours; None: what there is."""
    stacked: bool = False
    bad_above: float | None = None
    """Red from here on."""
    matrix: Matrix | None = None
    text: str = ""
    """Markdown, of a panel of text."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side under a heading, all equally wide."""

    title: str
    panels: tuple[Panel, ...]
    height: int = 8
    """In Grafana's units, about 30 pixels each."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label, one, several or all of them."""

    name: str
    metric: str
    label: str
    many: bool = True
    """Whether several may be chosen, and all at once."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard. `uid` is its name in URLs: it never changes, so that links and pushes find it again."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()

    def panels(self) -> tuple[Panel, ...]:
        """All panels, in the order in which they are read."""
        return tuple(panel for row in self.rows for panel in row.panels)
