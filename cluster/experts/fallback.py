"""What stands in for experts that nobody can compute any more: the next best ones that somebody can."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Substitution:
    """The experts that one token goes to in place of those that its router chose."""

    experts: tuple[int, ...]
    weights: tuple[float, ...]
    replaced: int
    """How many of the chosen experts were out of reach."""
    reason: str


def substitute(
    chosen: Sequence[int], weights: Sequence[float], logits: Sequence[float], reachable: Callable[[int], bool]
) -> Substitution | None:
    """Replace unreachable experts among `chosen` by the reachable ones that the router's `logits` rank next.

    The weights are those of a softmax over the logits of the new choice, scaled to the sum of the old ones: for a router
    that renormalises, what it would have said had the others never been there. Returns None where no expert of the layer
    is reachable. As many experts as before, or all that are reachable if there are fewer.
    """
    kept = [expert for expert in chosen if reachable(expert)]
    replaced = len(chosen) - len(kept)
    if not replaced:
        return Substitution(tuple(chosen), tuple(weights), 0, "every chosen expert can be reached")
    taken = set(kept)
    others = sorted(
        (expert for expert in range(len(logits)) if expert not in taken and reachable(expert)),
        key=lambda expert: (-logits[expert], expert),
    )
    experts = kept + others[:replaced]
    if not experts:
        return None
    # A router that rules experts out gives them no finite score.
    scores = [logits[expert] if math.isfinite(logits[expert]) else -1e30 for expert in experts]
    shares = [math.exp(score - max(scores)) for score in scores]
    scale = sum(weights) / sum(shares)
    reason = (
        f"{replaced} of {len(chosen)} chosen experts out of reach, {len(experts) - len(kept)} others took their place"
    )
    return Substitution(tuple(experts), tuple(share * scale for share in shares), replaced, reason)
