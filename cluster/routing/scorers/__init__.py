"""Scorers say how well a model suits a request. To add one: a file here, and its weight in `routing.scorers`.

A file has `score(signals, option)`, in [0, 1], 1 best, and `why(signals, option)`, the same in words. Scores are computed for every
request, words only for people who ask. One that looks neither at the request nor at the model's state says `CONSTANT = True`, and is
asked once.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.routing.option import Option
    from cluster.routing.signals import RequestSignals


@dataclass(frozen=True, slots=True)
class Scorer:
    """One scorer and what it counts."""

    name: str
    weight: float
    score: Callable[[RequestSignals, Option], float]
    why: Callable[[RequestSignals, Option], str]
    constant: bool
    """Whether it looks at the config alone."""


def scorer_names() -> tuple[str, ...]:
    """All that there are: the files of this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def scorers(weights: Mapping[str, float]) -> tuple[Scorer, ...]:
    """The scorers that count, by name, with their weights. Names are known to exist: the config was checked."""
    made = []
    for name, weight in weights.items():
        if weight > 0:
            module = importlib.import_module(f"{__name__}.{name}")
            made.append(Scorer(name, weight, module.score, module.why, getattr(module, "CONSTANT", False)))
    return tuple(made)
