"""The measures of the precision ladder, and what of them a level has in force."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

OWN: Final = "auto"
"""KV precision of the model itself."""
FP8: Final = "fp8"
"""KV precision that `fp8_kv` switches to."""
PINNED: Final = "pinned"
DISABLED: Final = "disabled"
"""Causes of a change that are an operator's word, not pressure."""
NORMAL: Final = "normal"
"""Name of level 0, which has no measure in force."""


class Measure(StrEnum):
    """What is done about a KV cache under pressure; what costs the answers least stands first."""

    CONSERVATIVE_SAMPLING = "conservative_sampling"
    """Temperature and top-p are capped, but for business-critical requests; best-effort ones are kept short."""
    FP8_KV = "fp8_kv"
    """The KV cache in 8 bits: about twice the tokens in the same memory."""
    TWIN = "twin"
    """New requests go to the model's resident twin of lower precision."""
    SHED = "shed"
    """Best-effort requests are refused."""


TURNING_AWAY: Final = frozenset({Measure.TWIN, Measure.SHED})
"""Measures that have a model not take requests itself."""


def in_force(levels: Sequence[Measure], level: int) -> frozenset[Measure]:
    """Measures in force at `level`, 0 to `len(levels)`: the first `level` of `levels`."""
    return frozenset(levels[: max(0, level)])


def name_of(levels: Sequence[Measure], level: int) -> str:
    """Name of `level` for people and metrics: `normal` for 0, else its last measure. One past the last counts as the last."""
    measures = levels[: max(0, level)]
    return measures[-1].value if measures else NORMAL


def level_of(levels: Sequence[str], measures: Sequence[str]) -> int:
    """The level at which a replica stands that has `measures` in force, in the order in which it took them.

    Where the config has changed since, only what both begin with counts: nothing comes into force by being renumbered.
    """
    level = 0
    while level < min(len(levels), len(measures)) and levels[level] == measures[level]:
        level += 1
    return level
