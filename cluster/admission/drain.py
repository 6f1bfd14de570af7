"""How fast a line drains: requests that end per second while others wait."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 30.0
"""Seconds of waiting that are looked back at."""

LEAST_S: Final = 1.0
"""Seconds of waiting from which something can be said."""

_ENDS: Final = 4096


class Drain:
    """Counts on a clock that runs only while somebody waits: what ends on an idle model tells nothing of a busy one's pace."""

    def __init__(self) -> None:
        self._before_s = 0.0
        self._since_s: float | None = None
        self._ends: deque[float] = deque(maxlen=_ENDS)

    def wait(self, waiting: bool, now_s: float) -> None:
        """Say whether somebody waits from now on."""
        if waiting and self._since_s is None:
            self._since_s = now_s
        elif not waiting and self._since_s is not None:
            self._before_s, self._since_s = self._clock(now_s), None

    def ended(self, now_s: float) -> None:
        """A request ended."""
        if self._since_s is not None:
            self._ends.append(self._clock(now_s))

    def per_s(self, now_s: float, ends: int = 1) -> float | None:
        """Requests a second; None: nobody waited long enough, or fewer than `ends` ended, for it to be known."""
        clock = self._clock(now_s)
        window = min(WINDOW_S, clock)
        if window < LEAST_S:
            return None
        while self._ends and clock - self._ends[0] > WINDOW_S:
            self._ends.popleft()
        if len(self._ends) == _ENDS:
            window = clock - self._ends[0]
        return len(self._ends) / max(window, 0.001) if len(self._ends) >= max(1, ends) else None

    def at_most_per_s(self, now_s: float) -> float | None:
        """The same; where none ended, the rate at which one would have by now."""
        window = min(WINDOW_S, self._clock(now_s))
        return self.per_s(now_s) or (1 / window if window >= LEAST_S else None)

    def _clock(self, now_s: float) -> float:
        return self._before_s + (0.0 if self._since_s is None else now_s - self._since_s)
