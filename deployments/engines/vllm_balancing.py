"""vLLM's own balancing of experts as a plain function."""

from __future__ import annotations

import numpy as np

from cluster.experts.placement import PlacementError, Reals, Slots


def balance(weights: Reals, slots: int, pools: int) -> Slots:
    """The expert of each slot, (layers, pools * slots), so that all pools get about the same; weights are (layers, experts).

    DeepSeek's EPLB (https://github.com/deepseek-ai/eplb) as vLLM carries it (`vllm.distributed.eplb`), without groups and
    nodes: slots beyond one for each expert go to those whose copies are the heaviest, then each copy, the heaviest first,
    to the pool that has the least. Raises `PlacementError` if there are fewer slots than experts.
    """
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    if slots * pools < weights.shape[1]:
        raise PlacementError(f"{pools} pools with {slots} slots in a layer cannot hold {weights.shape[1]} experts")
    # numpy in, numpy out: the policy's entry point for tensors would round the weights to single precision.
    placed = EPLB_POLICIES["default"].rebalance_experts_hierarchical(weights, slots * pools, 1, 1, pools)
    return np.asarray(placed, np.int64)
