"""What pools of experts did for one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_REPLICAS_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class PoolPart:
    """What one pool did."""

    pool: str
    pairs: int
    """Pairs of token and expert that it computed, over all layers."""
    replicas: tuple[str, ...] = ()
    """Its replicas that took part, at most `MAX_REPLICAS_NAMED`."""


@dataclass(frozen=True, slots=True)
class PoolUse:
    """What all pools did. Steps and waiting are those of the engine, which the request shared with others."""

    begun_s: float
    """When the first step began that sent its tokens to pools, seconds since 1970."""
    ended_s: float
    """When the last one ended."""
    steps: int
    wait_s: float
    """Seconds of those steps in which the engine waited for pools."""
    parts: tuple[PoolPart, ...] = ()
    resent_rows: int = 0
    """Tokens times layers that were sent a second time, as a replica broke or was late."""
    degraded_rows: int = 0
    """Tokens times layers in which other experts stood in for some that nobody could compute."""


def together(uses: Sequence[PoolUse]) -> PoolUse | None:
    """What was done for several sequences of one request, which went through the same steps; None for none of them."""
    if not uses:
        return None
    parts: dict[str, PoolPart] = {}
    for part in (part for use in uses for part in use.parts):
        known = parts.get(part.pool, PoolPart(part.pool, 0))
        replicas = tuple(dict.fromkeys((*known.replicas, *part.replicas)))[:MAX_REPLICAS_NAMED]
        parts[part.pool] = PoolPart(part.pool, known.pairs + part.pairs, replicas)
    return PoolUse(
        begun_s=min(use.begun_s for use in uses),
        ended_s=max(use.ended_s for use in uses),
        steps=max(use.steps for use in uses),
        wait_s=max(use.wait_s for use in uses),
        parts=tuple(parts[pool] for pool in sorted(parts)),
        resent_rows=sum(use.resent_rows for use in uses),
        degraded_rows=sum(use.degraded_rows for use in uses),
    )
