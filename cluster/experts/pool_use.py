"""What pools of experts did for one request."""

from __future__ import annotations

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
