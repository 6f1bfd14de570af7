"""Picks one of the models that fit."""

from __future__ import annotations

from collections.abc import Sequence


def pick(scored: Sequence[tuple[str, float]], margin: float) -> list[str]:
    """Models by rank, the one to choose first. `scored` is in the order in which the role names them, scores 0 to 1.

    The first stays the choice unless another beats it by `margin`, so that small changes of load move nobody back and
    forth; among equals the order decides. The same input always gives the same result.
    """
    ranked = sorted(scored, key=lambda entry: -entry[1])
    if not ranked:
        return []
    first, best = scored[0], ranked[0]
    if best[1] - first[1] < margin:
        best = first
    return [best[0], *(name for name, _ in ranked if name != best[0])]
