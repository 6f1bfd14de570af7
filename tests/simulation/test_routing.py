from __future__ import annotations

import numpy as np
import pytest

from cluster.config.engine import SimulatedExperts
from deployments.engines.simulated import routing
from deployments.engines.simulated.routing import Router

TOKENS = range(20_000)


def router(traffic: str = "chat", seed: int = 3, **changes: float) -> Router:
    return Router(SimulatedExperts.model_validate(changes), seed, traffic)


def shares(one: Router) -> np.ndarray:
    counts = one.counts(TOKENS)
    return counts / counts.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("experts", "top_k"), [(2, 1), (2, 2), (8, 2), (9, 9), (300, 7)])
@pytest.mark.parametrize("concentration", [0.0, 1.0, 10.0])
def test_every_token_goes_to_top_k_experts_none_twice(experts: int, top_k: int, concentration: float) -> None:
    one = router(layers=3, experts=experts, top_k=top_k, concentration=concentration)
    routes = np.frombuffer(one.experts(range(500)), "<u2").reshape(500, 3, top_k)
    assert routes.max() < experts
    assert all(len(set(choice)) == top_k for choice in routes.reshape(-1, top_k).tolist())
    counts = one.counts(range(500))
    assert (counts.sum(axis=1) == 500 * top_k).all()
    for layer in range(3):
        np.testing.assert_array_equal(np.bincount(routes[:, layer].ravel(), minlength=experts), counts[layer])


def test_shares_follow_zipf_and_are_even_at_0() -> None:
    weights = 1 / np.arange(1, 9)
    found = np.sort(shares(router(concentration=1.0)), axis=1)[:, ::-1]
    np.testing.assert_allclose(found, np.tile(weights / weights.sum(), (4, 1)), atol=0.01)
    np.testing.assert_allclose(shares(router(concentration=0.0)), 0.125, atol=0.01)


def test_what_is_beyond_certain_goes_to_the_others() -> None:
    found = np.sort(shares(router(experts=4, top_k=2, concentration=2.0)), axis=1)[:, ::-1]
    rest = 1 / np.arange(2, 5) ** 2
    np.testing.assert_allclose(found[0], [0.5, *(rest / rest.sum() / 2)], atol=0.01)


def test_each_layer_traffic_and_seed_has_favourites_of_its_own() -> None:
    of_chat = shares(router(layers=32))
    assert len(set(of_chat.argmax(axis=1).tolist())) > 3
    for other in (router("code", layers=32), router(seed=4, layers=32)):
        assert (shares(other).argmax(axis=1) != of_chat.argmax(axis=1)).mean() > 0.5


def test_routes_are_the_same_in_every_process_and_version() -> None:
    routes = np.frombuffer(router(layers=2).experts([0, 17, 10_000]), "<u2").reshape(3, 2, 2)
    assert routes.tolist() == [[[4, 7], [3, 7]], [[2, 5], [5, 7]], [[5, 7], [3, 7]]]


def test_parts_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = router()
    counts, experts = whole.counts(range(100)), whole.experts(range(100))
    monkeypatch.setattr(routing, "ROUTES_AT_ONCE", 64)
    np.testing.assert_array_equal(whole.counts(range(100)), counts)
    assert whole.experts(range(100)) == experts


def test_no_tokens_and_tokens_of_any_size() -> None:
    assert router().counts([]).sum() == 0 and router().experts([]) == b""
    assert router().counts([-1, 10**30]).sum() == 2 * 4 * 2
