"""Starts a pool process: `python -m deployments.experts`. It says on its output where it listens, as JSON, once it is ready."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path

from cluster.experts.pools import parse_holding
from deployments.processes import bind_to_cores, tie_to_owner


def main() -> None:
    """Load the experts, listen, serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="of this replica of the pool")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the model")
    parser.add_argument("--holds", type=Path, required=True, help="JSON file: layer to list of experts")
    parser.add_argument("--listen", required=True, help="unix:/path or tcp:host:port (port 0: any)")
    parser.add_argument("--secret-file", type=Path, required=True, help="what trunks have to know, too")
    parser.add_argument("--dtype", default="bfloat16", help="number format of the engine (bfloat16, float16, float32)")
    parser.add_argument("--threads", type=int, default=1, help="that compute")
    parser.add_argument(
        "--pairs-per-s", type=float, help="answer no faster than so many pairs of row and expert a second"
    )
    parser.add_argument("--spin-us", type=int, default=0, help="microseconds to look for work before sleeping")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    tie_to_owner()
    # Before torch makes its threads: they inherit it.
    bind_to_cores()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    import torch

    from deployments.engines.vllm_expert_kernel import expert_kernel
    from deployments.experts.pool import ExpertPool
    from deployments.experts.pool_server import PoolServer
    from deployments.experts.weights import Checkpoint
    from deployments.experts.wire import address_of, listen

    torch.set_num_threads(given.threads)
    holds = parse_holding(json.loads(given.holds.read_text(encoding="utf-8")), f"pool {given.name!r}")
    checkpoint = Checkpoint(given.checkpoint)
    pool = ExpertPool(checkpoint, holds, given.dtype, expert_kernel)
    listening = listen(given.listen)
    secret = given.secret_file.read_bytes().strip()
    server = PoolServer(
        pool, [listening], given.name, checkpoint.fingerprint(), secret, given.spin_us / 1e6, given.pairs_per_s
    )
    signal.signal(signal.SIGTERM, lambda _number, _frame: server.stop())
    sys.stdout.write(json.dumps({"address": address_of(listening), **server.report()}) + "\n")
    sys.stdout.flush()
    server.run()


if __name__ == "__main__":
    main()
