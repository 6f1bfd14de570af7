"""Moves experts from pool to pool while tokens come: first the weights are loaded, then trunks are told, then the old ones go.

A state machine without clocks or I/O. Both placements are held in between, so no pair is ever without a pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cluster.experts.placement import Placement

LOAD_LIMIT_S: Final = 60.0
"""Seconds that loading may take before a move is given up."""
TELL_LIMIT_S: Final = 15.0
"""Seconds that an engine may take to work by the new placement. One that has nothing to do takes it on before its next step."""


class Stage(StrEnum):
    """How far a move is."""

    RESTS = "rests"
    LOADS = "loads"
    TELLS = "tells"


@dataclass(slots=True)
class Mover:
    """Of one model."""

    placement: Placement
    """That trunks work by."""
    stage: Stage = Stage.RESTS
    moved_pairs: int = 0
    _next: Placement | None = None
    _since_s: float = 0.0

    def begin(self, target: Placement, now_s: float) -> None:
        """Go to another placement. Only at rest."""
        self._next, self.stage, self._since_s = target, Stage.LOADS, now_s

    def resume(self, placement: Placement, held: Placement, now_s: float) -> None:
        """Go on from what pools hold, which may be more than their experts' one home: in the middle of a move, or at rest."""
        self.placement = placement
        if bool((held & ~placement).any()):
            self._next, self.stage, self._since_s = held, Stage.TELLS, now_s

    @property
    def held(self) -> Placement:
        """What pools have to hold now: more than trunks know of, while a move is under way."""
        return self.placement if self._next is None else self.placement | self._next

    def advance(self, now_s: float, *, loaded: bool, told: bool) -> bool:
        """Go on if the stage is done; returns whether trunks have to be told of another placement.

        `loaded`: every replica holds what `held` says. `told`: every engine works by `placement`.
        """
        if self._next is None:
            return False
        late_s = now_s - self._since_s
        if self.stage is Stage.LOADS:
            if loaded:
                self.moved_pairs += int((self._next & ~self.placement).sum())
                old, self.placement = self.placement, self._next
                self._next, self.stage, self._since_s = old, Stage.TELLS, now_s
                return True
            if late_s > LOAD_LIMIT_S:
                self._next, self.stage = None, Stage.RESTS
        elif told or late_s > TELL_LIMIT_S:
            self._next, self.stage = None, Stage.RESTS
        return False
