"""From samples of one replica to the rates that say whether it is under pressure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

_FINEST_S: Final = 0.25
_PARTS: Final = 128
"""Samples closer together than a part of the window, or than `_FINEST_S`, count as one: what is kept stays bounded."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one replica showed at one time."""

    at_s: float
    """On a clock that never goes back."""
    kv_usage: float
    """Share of its KV cache in use, 0 to 1."""
    preemptions: int
    """Requests preempted since the engine started."""
    waiting: float
    """Requests that wait for it now."""
    prefix_hits: int
    """Tokens found in the prefix cache since the engine started."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates over the window."""

    preemptions_per_s: float = 0.0
    queue_growth_per_s: float = 0.0
    """Requests per second; 0 for a queue that shrinks."""
    prefix_hits_per_s: float = 0.0
    """Tokens per second."""


class PressureMeter:
    """The samples of one replica over a window of `window_s` seconds, above 0."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._apart_s = min(max(window_s / _PARTS, _FINEST_S), window_s / 4)
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        """Takes a sample. One whose counters went back is of an engine that was started anew: the window starts over."""
        samples = self._samples
        if samples and _restarted(samples[-1], sample):
            samples.clear()
        if len(samples) > 1 and sample.at_s - samples[-2].at_s < self._apart_s:
            samples.pop()
        samples.append(sample)
        # One sample from before the window stays, so that the window is covered whatever the time between samples.
        while len(samples) > 2 and sample.at_s - samples[1].at_s >= self._window_s:
            samples.popleft()

    def rates(self) -> Rates:
        """The rates now. With samples over less than half of the window they are 0: one jump is not a rate."""
        if not self._samples:
            return Rates()
        first, last = self._samples[0], self._samples[-1]
        span_s = last.at_s - first.at_s
        if span_s < self._window_s / 2 or span_s <= 0:
            return Rates()
        return Rates(
            preemptions_per_s=(last.preemptions - first.preemptions) / span_s,
            queue_growth_per_s=max(0.0, (last.waiting - first.waiting) / span_s),
            prefix_hits_per_s=(last.prefix_hits - first.prefix_hits) / span_s,
        )


def _restarted(before: Sample, sample: Sample) -> bool:
    counters = [(one.preemptions, one.prefix_hits) for one in (before, sample)]
    return sample.at_s < before.at_s or any(new < old for old, new in zip(*counters, strict=True))
