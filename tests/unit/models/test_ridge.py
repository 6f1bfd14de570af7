"""Closed-form fits reach the least-squares optimum and fall back to their prior."""

from __future__ import annotations

import torch

from deployments.models.ridge import gram, ridge


def _problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 12, generator=generator)
    weights = torch.randn(12, 4, generator=generator)
    return features, features @ weights, weights


def test_without_noise_the_weights_are_found() -> None:
    features, target, weights = _problem()
    assert torch.allclose(ridge(features, target, torch.zeros(12, 4), 1e-6), weights, atol=1e-3)


def test_a_strong_pull_returns_the_prior() -> None:
    features, target, _ = _problem()
    prior = torch.full((12, 4), 3.0)
    assert torch.allclose(ridge(features, target, prior, 1e6), prior, atol=1e-3)


def test_features_that_repeat_are_no_obstacle() -> None:
    features, target, _ = _problem()
    doubled = torch.cat([features, features], dim=1)
    found = ridge(doubled, target, torch.zeros(24, 4), 1e-4)
    assert torch.allclose(doubled @ found, target, atol=1e-2)


def test_products_are_summed_over_all_pieces() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(9000, 3, generator=generator), torch.randn(9000, 2, generator=generator)
    assert torch.allclose(gram(a, b), a.T @ b, rtol=1e-4, atol=1e-2)
