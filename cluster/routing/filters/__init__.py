"""Filters say what speaks against a model. One file each: a name, and `against(signals, option)`, words or None.

Those of `NEVER` hold without exception. Those of `RATHER_NOT` are ignored if they would leave no model at all: then the
contract or the engine says to the caller what is wrong with the request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cluster.routing.filters import allowed, capability, health, impaired, room
from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals

Filter = Callable[[RequestSignals, Option], str | None]

NEVER: Final[tuple[Filter, ...]] = (health.against, allowed.against)
RATHER_NOT: Final[tuple[Filter, ...]] = (room.against, capability.against, impaired.against)
