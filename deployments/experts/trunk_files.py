"""Where a trunk and the replica that runs it leave each other what they have to know of pools."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TAKEN: Final = ".taken"
"""Suffix of the file beside the map that has the version which the trunk works by."""
SPINS: Final = 5000
"""How often an idle thread of a trunk looks for work before it sleeps, in about a tenth of a millisecond. By default they look for
milliseconds, on cores that pools on the same machine are to compute on meanwhile: it made steps half as long again."""


@dataclass(frozen=True, slots=True)
class TrunkFiles:
    """Files and time limits of one trunk. The map is written anew, whole, whenever another one is in force."""

    map: Path
    """The pool map as JSON (`cluster.experts.pools`); the trunk takes on a newer version within half a second."""
    secret: Path
    """What trunks and pools have to know."""
    answer_s: float
    """Seconds that one replica may take to answer."""
    outage_s: float
    """Seconds that a step waits for any expert of a layer before it fails."""
    wake_s: float
    """Seconds that a step waits for a parked pool before other experts stand in."""

    @property
    def wanted(self) -> Path:
        """A folder; the trunk touches a file named like a parked pool in it for as long as tokens wait for the pool."""
        return self.map.with_suffix(".wanted")

    @property
    def taken(self) -> Path:
        """The version of the map that the trunk works by, as a number; its trunk writes it."""
        return self.map.with_suffix(TAKEN)

    @property
    def longest_s(self) -> float:
        """Seconds that a step may wait for pools: for an answer that does not come, then for somebody else."""
        return self.answer_s + max(self.outage_s, self.wake_s)

    def environment(self) -> dict[str, str]:
        """What tells an engine process so."""
        return {
            "POINTSMAN_POOL_MAP": str(self.map),
            "POINTSMAN_POOL_SECRET_FILE": str(self.secret),
            "POINTSMAN_POOL_ANSWER_S": str(self.answer_s),
            "POINTSMAN_POOL_OUTAGE_S": str(self.outage_s),
            "POINTSMAN_POOL_WAKE_S": str(self.wake_s),
            "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", str(SPINS)),
        }
