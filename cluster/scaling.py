"""How many replicas a model is to have: a pure function of what loads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

PRESSED: Final = 0.5
"""Level of the precision ladder, as a mean over the time that the autoscaler looks back, from which a replica counts as pressed."""


@dataclass(frozen=True, slots=True)
class Load:
    """One figure of every replica, and what each of them is to have of it."""

    name: str
    """Of the figure, for people."""
    values: tuple[float, ...]
    """By replica; those that told nothing are not among them."""
    target: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """Replicas that a model is to have, not yet held within its bounds."""

    replicas: float
    reason: str


def replicas_wanted(
    by_requests: float, current: int, loads: Iterable[Load] = (), levels: Sequence[float] = (), tolerance: float = 0.0
) -> Wanted:
    """The largest number that any figure asks for.

    `by_requests` is what the number of requests alone asks for. A figure asks for so many replicas that its mean would meet its
    target, and for as many as there are while it misses it by no more than `tolerance`; so does the horizontal pod autoscaler
    of Kubernetes (https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/). `levels` is how
    far replicas are down the precision ladder: as long as one of them gives up precision for want of KV memory, the model
    gets a replica more than it has, and loses none.
    """
    wanted = Wanted(by_requests, "requests in flight")
    for load in loads:
        if not load.values:
            continue
        mean = sum(load.values) / len(load.values)
        ratio = mean / load.target
        # Those that have told nothing yet have started since, and take their share of it.
        asked = float(current) if abs(ratio - 1) <= tolerance else len(load.values) * ratio
        if asked > wanted.replicas:
            wanted = Wanted(asked, f"{load.name}: {mean:.4g} a replica, aimed at {load.target:.4g}")
    if any(level >= PRESSED for level in levels) and current + 1 > wanted.replicas:
        wanted = Wanted(current + 1, f"precision is lowered for want of KV memory (level {max(levels):.2g})")
    return wanted
