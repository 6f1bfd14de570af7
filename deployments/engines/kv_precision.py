"""KV precision as an engine sees it: what it can change to while it runs, and what a change did."""

from __future__ import annotations

from dataclasses import dataclass


class KvPrecisionError(RuntimeError):
    """The KV precision was not changed, and the engine is as it was. The message says why."""

    log_safe = True
    """It names parts of an engine, nothing of a request."""


@dataclass(frozen=True, slots=True)
class KvSwitch:
    """One change of the KV precision."""

    before: str
    """Number format before, for example `bfloat16`."""
    after: str
    pause_s: float
    """Seconds for which the engine stood still."""
    preempted: int
    """Requests that were running, and are computed again."""
    tokens: int
    """Tokens of these whose KV is computed again."""
    blocks_before: int
    blocks_after: int


@dataclass(frozen=True, slots=True)
class KvUse:
    """What one request met in the KV cache."""

    precision: str | None = None
    """Number format of its KV when it ended; None: the engine has no KV cache, or does not tell."""
    preemptions: int = 0
    """Times that it lost its KV, for want of blocks or by a change of precision."""
    switches: int = 0
    """Of these, by a change of precision: it lived through so many."""
    recomputed_tokens: int = 0
    """Tokens whose KV was computed again after that."""


class FixedKvPrecision:
    """An engine whose KV precision cannot change while it runs."""

    weights: str = ""
    """Number format of the weights; empty: not known."""
    sampling_defaults: tuple[float, float] = (1.0, 1.0)
    """Temperature and top-p where a request leaves them open."""
    kv_precisions: tuple[str, ...] = ()
    """What it can change to, `auto` for its own; empty: it cannot change."""
    kv_blockers: tuple[str, ...] = ("this engine has no KV cache of its own",)
    """Why it cannot change, each by name; empty: it can."""

    async def set_kv_precision(self, precision: str) -> KvSwitch:
        """Change the KV precision; requests under way are kept. Raises `KvPrecisionError`, or `EngineDeadError`."""
        raise KvPrecisionError(f"the KV precision cannot change to {precision}: {'; '.join(self.kv_blockers)}")
