"""A pool's own counts, in the form in which heat is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cluster.experts.load import Counts


def counts_of(tokens: Mapping[str, Mapping[str, int]], layers: Sequence[int], experts: int) -> Counts:
    """Rows computed by layer and expert (`ExpertPool.tokens`) as (layers, experts); `layers` are the model's numbers of them."""
    counts = np.zeros((len(layers), experts), np.int64)
    for number, layer in enumerate(layers):
        for expert, count in tokens.get(str(layer), {}).items():
            counts[number, int(expert)] = count
    return counts
