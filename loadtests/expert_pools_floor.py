"""What it costs to have experts elsewhere, whatever they compute: a trunk's client against pools whose kernel does nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.experts.pools import Holding
from loadtests.expert_pools_arms import MeasureError, trunk_files
from loadtests.stats import median

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    import torch

    from deployments.experts.kernels import Packed, Pairs, Rows, Sums

START_S = 60.0


class _NoKernel:
    """Computes nothing and holds no weights to speak of."""

    name = "nothing"
    alignment = 1

    def pack(self, w13: torch.Tensor, w2: torch.Tensor) -> Packed:
        return w13[:, :1, :1].clone(), w2[:, :1, :1].clone()

    def compute(self, out: Sums, x: Rows, packed: Packed, pairs: Pairs) -> None:
        del x, packed, pairs
        out.fill(0)


def _serve(checkpoint: Path, holds: Holding, address: str, secret: bytes, ready: Event) -> None:
    import torch

    from deployments.experts.pool import ExpertPool
    from deployments.experts.pool_server import PoolServer
    from deployments.experts.weights import Checkpoint
    from deployments.experts.wire import listen
    from deployments.processes import die_with_parent

    die_with_parent(os.getppid())
    torch.set_num_threads(1)
    opened = Checkpoint(checkpoint)
    pool = ExpertPool(opened, holds, "bfloat16", lambda _dtype, _hidden: _NoKernel())
    server = PoolServer(pool, [listen(address)], "nothing", opened.fingerprint(), secret)
    ready.set()
    server.run()


def floor_s(checkpoint: Path, holdings: Sequence[Holding], folder: Path, rows: int, steps: int) -> float:
    """Seconds of a step of so many rows in which a trunk does nothing but ask its pools, median of `steps`.

    Raises `MeasureError` if the pools do not start.
    """
    import torch

    from deployments.experts.client import PoolClient
    from deployments.experts.link import Model
    from deployments.experts.weights import Checkpoint

    opened = Checkpoint(checkpoint)
    (folder / "secret").write_bytes(b"nothing to hide")
    context = multiprocessing.get_context("spawn")
    addresses = [f"unix:{folder}/n{number}.sock" for number in range(len(holdings))]
    processes = []
    for holds, address in zip(holdings, addresses, strict=True):
        ready = context.Event()
        process = context.Process(target=_serve, args=(checkpoint, holds, address, b"nothing to hide", ready))
        process.start()
        processes.append((process, ready))
    try:
        if not all(ready.wait(START_S) for _, ready in processes):
            raise MeasureError("a pool that computes nothing did not start")
        model = Model(opened.fingerprint(), "bfloat16", opened.shape.hidden)
        client = PoolClient(trunk_files(folder, holdings, addresses), opened.layers, opened.experts, model)
        client.open()
        top_k = int(json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["num_experts_per_tok"])
        x = torch.randn(rows, opened.shape.hidden).bfloat16()
        scores = torch.randn(rows, opened.experts)
        weights, experts = scores.topk(top_k)
        took = []
        for _ in range(steps):
            begun = time.perf_counter()
            for layer in opened.layers:
                client.begin(layer, x, weights, experts.int(), lambda: scores)
                client.finish()
            client.take_step()
            took.append(time.perf_counter() - begun)
        client.close()
        return median(took)
    finally:
        for process, _ in processes:
            process.kill()
            process.join()
