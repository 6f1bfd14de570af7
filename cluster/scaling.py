"""How many replicas a model is to have. A pure function; Serve's own policy counts the requests, this adds memory to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

PRESSED: Final = 0.5
"""Level of the precision ladder, as a mean over the time that the autoscaler looks back, from which a replica counts as pressed."""


def replicas_wanted(by_requests: float, current: int, levels: Iterable[float]) -> float:
    """Replicas that a model is to have, not yet held within its bounds.

    `by_requests` is what the number of requests alone asks for, `levels` how far its replicas are down the precision ladder. As
    long as one of them gives up precision for want of KV memory, the model gets a replica more than it has, and loses none:
    few long requests fill a cache as well as many short ones do.
    """
    if any(level >= PRESSED for level in levels):
        return max(by_requests, current + 1)
    return by_requests
