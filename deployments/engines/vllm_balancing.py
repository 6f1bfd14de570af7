"""vLLM's own balancing of experts as a plain function.

The module is loaded by its path, apart from the package: importing vLLM itself takes six seconds and half a gigabyte.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, Final

import numpy as np

from cluster.experts.placement import PlacementError, Reals, Slots

_PACKAGE: Final = "_pointsman_eplb"
"""Stands for `vllm.distributed.eplb.policy`, whose modules import one another."""


def balance(weights: Reals, slots: int, pools: int) -> Slots:
    """The expert of each slot, (layers, pools * slots), so that all pools get about the same; weights are (layers, experts).

    DeepSeek's EPLB (https://github.com/deepseek-ai/eplb) as vLLM carries it (`vllm.distributed.eplb`), without groups and
    nodes: slots beyond one for each expert go to those whose copies are the heaviest, then each copy, the heaviest first,
    to the pool that has the least. Raises `PlacementError` if there are fewer slots than experts.
    """
    if slots * pools < weights.shape[1]:
        raise PlacementError(f"{pools} pools with {slots} slots in a layer cannot hold {weights.shape[1]} experts")
    # numpy in, numpy out: the policy's entry point for tensors would round the weights to single precision.
    placed = policy().rebalance_experts_hierarchical(weights, slots * pools, 1, 1, pools)
    return np.asarray(placed, np.int64)


@functools.cache
def policy() -> Any:
    """vLLM's policy. Loading it takes the seconds that torch takes. Raises `ImportError`."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        raise ImportError("vLLM, whose algorithm balances experts, is not installed; install the locked environment")
    package = types.ModuleType(_PACKAGE)
    package.__path__ = [str(Path(found.submodule_search_locations[0], "distributed", "eplb", "policy"))]
    sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.default").DefaultEplbPolicy
