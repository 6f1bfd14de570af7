"""The record of one change on a precision ladder: what changed, why, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrecisionChange:
    """A replica went to another level of its ladder, or tried to."""

    id: str
    at: float
    """Unix time of its end, seconds."""
    model: str
    replica: str
    cause: str
    """A word: `kv_usage`, `preemptions`, `queue_growth`, `calm`, `pinned` or `disabled`."""
    reason: str
    """For people, with the numbers."""
    level_before: int
    level: int
    level_name: str
    """`normal`, or the last measure that the level adds."""
    kv_before: str
    """Number format of the KV cache before, for example `bfloat16`; empty: the engine has none."""
    kv_after: str
    pause_s: float = 0.0
    """Seconds for which the engine stood still; 0 if its KV precision did not change."""
    preempted: int = 0
    """Requests that were running and were computed again."""
    tokens: int = 0
    """Tokens of these whose KV was computed again."""
    blocks_before: int = 0
    blocks_after: int = 0
    """KV blocks in the pool."""
    error: str | None = None
    """Why it failed; the engine is as it was. None: it did not."""
