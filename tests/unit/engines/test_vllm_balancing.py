from __future__ import annotations

import numpy as np
import pytest

from cluster.experts.placement import PlacementError, balanced, replica_loads, round_robin
from deployments.engines.vllm_balancing import balance

# Importing vLLM and its dependencies warns about many things that are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_it_is_what_vllm_answers_for_the_example_of_the_paper() -> None:
    import torch
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    # The example in the README of https://github.com/deepseek-ai/eplb.
    weights = np.array(
        [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]],
        float,
    )
    found = balance(weights, 2, 8)
    theirs = EPLB_POLICIES["default"].rebalance_experts(torch.tensor(weights), 16, 1, 1, 8)
    assert found.tolist() == theirs.tolist()
    assert found.shape == (2, 16) and found.dtype == np.int64
    # The heaviest experts of the first layer are those with a second copy.
    assert sorted(np.flatnonzero(np.bincount(found[0]) == 2).tolist()) == [1, 4, 5, 10]


def test_pools_are_evener_than_in_turn() -> None:
    weights = np.random.default_rng(1).pareto(1.5, (6, 32)) + 0.01
    one = np.ones(8)
    even = replica_loads(balanced(weights, 6, 8, balance), weights, one)
    turn = replica_loads(round_robin(6, 32, 8), weights, one)
    assert even.max() < 0.6 * turn.max()
    assert even.sum() == pytest.approx(weights.sum()) == pytest.approx(turn.sum())


def test_too_few_slots_are_refused_by_number() -> None:
    with pytest.raises(PlacementError, match="2 pools with 3 slots in a layer cannot hold 8 experts"):
        balance(np.ones((1, 8)), 3, 2)
