"""Least squares with a prior, the closed form by which every replaced part is fitted."""

from __future__ import annotations

import torch
from torch import Tensor


def gram(a: Tensor, b: Tensor) -> Tensor:
    """a^T b in float32, for a of shape (n, i) and b of shape (n, j), summed in pieces to bound memory."""
    total = torch.zeros(a.shape[1], b.shape[1])
    for rows_a, rows_b in zip(a.split(8192), b.split(8192), strict=True):
        total += rows_a.float().T @ rows_b.float()
    return total


def ridge(features: Tensor, target: Tensor, prior: Tensor, strength: float) -> Tensor:
    """Weights W of shape (i, j) that minimise |features W - target|^2 + s |W - prior|^2.

    `features` is (n, i), `target` (n, j), `prior` (i, j); s is `strength` times the mean square column norm of
    `features`, so that the same strength means the same at every layer.

    Raises torch.linalg.LinAlgError when the problem is singular, which a positive strength prevents.
    """
    moments = gram(features, features)
    penalty = strength * moments.diagonal().mean()
    moments.diagonal().add_(penalty)
    right = gram(features, target) + penalty * prior
    return torch.cholesky_solve(right, torch.linalg.cholesky(moments))
