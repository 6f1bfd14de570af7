"""Holds, in memory, what each key has used of its limits. The rules are in `cluster.limits`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from cluster import limits
from cluster.keys import KeyLimits, KeyRecord
from cluster.limits import LimiterState

MAX_KEYS: Final = 10_000
"""Keys whose state is held at once."""

_UNLIMITED: Final = KeyLimits()


@dataclass(slots=True)
class Admission:
    """One admitted request. Say what it `spent` before it ends; one that says nothing is charged what it reserved."""

    headers: Mapping[str, str] = field(default_factory=dict)
    """`x-ratelimit-*` headers for the response."""
    used: int | None = None
    """Tokens that it used."""


class KeyLimiter:
    """The limits of all keys in one process. `clock` returns seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_keys: int = MAX_KEYS) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._states: dict[str, LimiterState] = {}

    @property
    def keys(self) -> int:
        """Keys whose state is held (a count)."""
        return len(self._states)

    def running(self, key_id: str) -> int:
        """Requests of a key in flight (a count)."""
        state = self._states.get(key_id)
        return 0 if state is None else state.running

    @asynccontextmanager
    async def admit(self, key: KeyRecord | None, tokens: int) -> AsyncIterator[Admission]:
        """Hold a place for one request that reserves `tokens` tokens. Raises `ApiError` 429 if there is none."""
        if key is None or key.limits == _UNLIMITED:
            yield Admission()
            return
        now = self._clock()
        state, decision = limits.admit(self._states.get(key.id, LimiterState()), key.limits, now, tokens)
        self._keep(key.id, state, now)
        if not decision.allowed:
            raise limits.refused(decision)
        admission = Admission(decision.headers)
        try:
            yield admission
        finally:
            used = tokens if admission.used is None else admission.used
            ended = self._clock()
            self._keep(key.id, limits.settle(self._states.get(key.id, state), ended, now, tokens, used), ended)

    def _keep(self, key_id: str, state: LimiterState, now: float) -> None:
        self._states[key_id] = state
        if len(self._states) > self._max_keys:
            # Down to three quarters, so that this is not done for every request.
            self._states = limits.prune(self._states, now, self._max_keys * 3 // 4)
