"""Trunks' clients of the pools in `pool_processes`, and batches for them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cluster.experts.pools import PoolMap
from deployments.experts.client import PoolClient
from deployments.experts.link import Model
from deployments.experts.weights import Checkpoint
from tests.unit.experts.pool_processes import EXPERTS, HIDDEN, LAYERS, SECRET, TOP_K, trunk_files

WHOLE = {layer: frozenset(range(EXPERTS)) for layer in range(LAYERS)}


def a_batch(rows: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, weights, chosen experts and the scores behind them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, HIDDEN, generator=generator)
    logits = torch.randn(rows, EXPERTS, generator=generator)
    top, ids = logits.topk(TOP_K)
    return x, torch.softmax(top, -1), ids.int(), logits


def client_of(pool_map: PoolMap, folder: Path, secret: bytes = SECRET, **limits: float) -> PoolClient:
    """A client of pools with the model in `folder`, whose files are in a folder of their own beside that."""
    own = Path(tempfile.mkdtemp(dir=folder.parent))
    client = PoolClient(
        trunk_files(own, pool_map, secret, **limits),
        list(range(LAYERS)),
        EXPERTS,
        Model(Checkpoint(folder).fingerprint(), "float32", HIDDEN),
    )
    client.open()
    return client


def answer(client: PoolClient, layer: int, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    x, weights, ids, logits = batch
    client.begin(layer, x, weights, ids, lambda: logits)
    return client.finish()


def report_with(client: PoolClient, true: Callable[[dict[str, Any]], bool], seconds: float = 10.0) -> dict[str, Any]:
    """The client's report, once it is so."""
    until = time.monotonic() + seconds
    while True:
        report = client.report()
        if true(report):
            return report
        assert time.monotonic() < until, report
        time.sleep(0.02)
