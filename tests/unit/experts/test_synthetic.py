"""Made-up experts: the same everywhere, different from each other, and computed by pools as their source says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.config.engine import SimulatedExperts
from deployments.experts.synthetic import SyntheticCheckpoint, simulated_checkpoint
from deployments.experts.weights import CheckpointError
from deployments.experts.wire import FrameKind, Header
from tests.unit.engines.simulated_pools import simulated_pool

LAYERS, EXPERTS = 3, 6


def rows_of(count: int, hidden: int = 16) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, hidden)).astype(np.float32)


def test_weights_follow_from_the_seed_and_every_expert_has_its_own() -> None:
    one, same, other = (SyntheticCheckpoint(LAYERS, EXPERTS, seed=seed) for seed in (1, 1, 2))
    every = list(range(EXPERTS))
    for layer in one.layers:
        first, again, another = (c.read(layer, every, torch.float32, 8) for c in (one, same, other))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], another[0])
    packed = torch.cat([one.read(layer, every, torch.float32, 8)[0] for layer in one.layers])
    assert len({row.numpy().tobytes() for row in packed}) == LAYERS * EXPERTS


def test_the_order_asked_for_is_kept_and_padding_is_zero() -> None:
    made = SyntheticCheckpoint(LAYERS, EXPERTS)
    w13, w2 = made.read(1, [4, 0], torch.float32, 12)
    plain13, plain2 = made.read(1, [0, 4], torch.float32, 8)
    assert w13.shape == (2, 24, 16) and w2.shape == (2, 16, 12)
    assert torch.equal(w13[1, :8], plain13[0, :8]) and torch.equal(w13[0, 12:20], plain13[1, 8:])
    assert torch.equal(w2[0, :, :8], plain2[1])
    assert not w13[:, 8:12].any() and not w13[:, 20:].any() and not w2[:, :, 8:].any()


def test_a_pool_computes_what_the_source_says() -> None:
    made = SyntheticCheckpoint(LAYERS, EXPERTS, seed=3)
    pool = simulated_pool(made, {layer: frozenset(range(EXPERTS)) for layer in made.layers})
    x, experts, weights = rows_of(4), np.array([[0, 5], [2, 1], [5, 4], [3, 0]], "<i4"), rows_of(4, 2)
    order = experts.reshape(-1).argsort(kind="stable")
    pairs = (np.repeat(np.arange(4, dtype="<i4"), 2), experts.reshape(-1), weights.reshape(-1))
    body = b"".join(numbers[order].tobytes() for numbers in pairs) + x.tobytes()
    for layer in made.layers:
        out = bytearray(x.nbytes)
        pool.compute(Header(FrameKind.REQUEST, 1, layer, 4, 8, len(body)), memoryview(bytearray(body)), memoryview(out))
        expected = [made.answer(layer, *row) for row in zip(x, experts, weights, strict=True)]
        np.testing.assert_allclose(np.frombuffer(out, np.float32).reshape(4, 16), expected, rtol=1e-4, atol=1e-5)
    assert 0.05 < np.abs(expected).mean() < 20


def test_the_fingerprint_says_that_it_is_simulated_and_tells_models_apart() -> None:
    models = [SyntheticCheckpoint(*sizes) for sizes in ((3, 6), (6, 3), (3, 6, 32), (3, 6, 16, 16), (3, 6, 16, 8, 1))]
    prints = [model.fingerprint() for model in models]
    assert len(set(prints)) == len(prints) and all(text.startswith("simulated:") for text in prints)
    config = SimulatedExperts(layers=3, experts=6)
    assert simulated_checkpoint(config, 1).fingerprint() == prints[4]


@pytest.mark.parametrize("holds", [{3: {0}}, {0: {6}}, {-1: {0}}])
def test_experts_that_the_model_does_not_have_are_refused(holds: dict[int, set[int]]) -> None:
    made = SyntheticCheckpoint(LAYERS, EXPERTS)
    with pytest.raises(CheckpointError, match="no expert"):
        simulated_pool(made, {layer: frozenset(experts) for layer, experts in holds.items()})
