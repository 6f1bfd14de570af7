"""The measures of the precision ladder, and what of them a level has in force."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

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


def in_force(levels: Sequence[Measure], level: int) -> frozenset[Measure]:
    """Measures in force at `level`, 0 to `len(levels)`: the first `level` of `levels`."""
    return frozenset(levels[: max(0, level)])


def name_of(levels: Sequence[Measure], level: int) -> str:
    """Name of `level` for people and metrics: `normal` for 0, else its last measure. One past the last counts as the last."""
    measures = levels[: max(0, level)]
    return measures[-1].value if measures else NORMAL
