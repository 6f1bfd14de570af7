"""Tells the ingress early how sure the model is of a stream's first tokens, so that a bad start can be replaced unseen."""

from __future__ import annotations

from cluster.routing.confidence import ConfidenceMeter
from deployments.engines.protocol import Emit, judged_event


class Judging:
    """Hands a stream's events on, with one judgement among them once enough tokens were judged."""

    def __init__(self, emit: Emit, meter: ConfidenceMeter | None, after: int | None) -> None:
        self._emit = emit
        self._meter = meter
        self._after = after

    def event(self, data: bytes) -> None:
        """One event, whose tokens the meter has taken in already."""
        self._emit(data)
        meter = self._meter
        if meter is not None and self._after is not None and meter.tokens >= self._after:
            told = meter.result()
            if told is not None:
                self._emit(judged_event(told))
            self._after = None
