"""Pools on threads of this process for a simulated trunk, and the files that lead it to them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from cluster.config.engine import EngineConfig, EngineType, SimulatedConfig, SimulatedExperts
from cluster.experts.pools import Holding, Pool, PoolMap, Replica, split_evenly
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest
from deployments.engines.simulated import SimulatedEngine
from deployments.experts.kernels import TorchKernel
from deployments.experts.pool import ExpertPool
from deployments.experts.pool_server import PoolServer
from deployments.experts.synthetic import DTYPE, SyntheticCheckpoint, simulated_checkpoint
from deployments.experts.trunk_files import TrunkFiles
from deployments.experts.wire import address_of, listen

EXPERTS = SimulatedExperts(layers=3, experts=8, top_k=2)
SEED = 7
SECRET = b"a secret of the tests"
HALVES = split_evenly(range(EXPERTS.layers), EXPERTS.experts, 2)


def simulated_pool(checkpoint: SyntheticCheckpoint, holds: Holding) -> ExpertPool:
    """A pool of made-up experts as Ray Serve's replicas have it."""
    return ExpertPool(checkpoint, holds, DTYPE, lambda dtype, _hidden: TorchKernel(dtype))


class Pools:
    """Replicas by pool (`even` and `odd` experts); the map names those that are started."""

    def __init__(self, folder: Path, answer_s: float = 5.0, outage_s: float = 0.5, wake_s: float = 5.0) -> None:
        self.files = TrunkFiles(folder / "map.json", folder / "secret", answer_s, outage_s, wake_s)
        self.files.secret.write_bytes(SECRET)
        self._folder = folder
        self._version = 0
        self._servers: dict[str, tuple[PoolServer, threading.Thread]] = {}
        self._replicas: dict[str, list[Replica]] = {"even": [], "odd": []}

    def start(
        self, pool: str, name: str, weights: SyntheticCheckpoint | None = None, pairs_per_s: float | None = None
    ) -> None:
        """A replica; `weights` other than the model's make it answer wrong."""
        known = simulated_checkpoint(EXPERTS, SEED)
        held = simulated_pool(weights or known, HALVES[["even", "odd"].index(pool)])
        listening = listen(f"unix:{self._folder}/{name}.sock")
        server = PoolServer(held, [listening], name, known.fingerprint(), SECRET, pairs_per_s=pairs_per_s)
        thread = threading.Thread(target=server.run)
        thread.start()
        self._servers[name] = server, thread
        self._replicas[pool].append(Replica(name, address_of(listening)))

    def kill(self, name: str) -> None:
        """End a replica, whatever it does; the map still names it."""
        server, thread = self._servers.pop(name)
        server.stop()
        thread.join(10)

    def write_map(self) -> None:
        """A new version of the map, with all that were started."""
        self._version += 1
        pools = [
            Pool(name, tuple(self._replicas[name]), holds) for name, holds in zip(("even", "odd"), HALVES, strict=True)
        ]
        fresh = self.files.map.with_suffix(".new")
        fresh.write_text(PoolMap(self._version, tuple(pools)).to_json())
        fresh.replace(self.files.map)

    def close(self) -> None:
        for name in list(self._servers):
            self.kill(name)


@contextlib.contextmanager
def pools(folder: Path, *replicas: str, **limits: float) -> Iterator[Pools]:
    """Starts replicas, given as `pool/name`, and writes the map."""
    started = Pools(folder, **limits)
    try:
        for replica in replicas:
            started.start(*replica.split("/"))
        started.write_map()
        yield started
    finally:
        started.close()


def engine_of(
    files: TrunkFiles | None, experts: SimulatedExperts | None = EXPERTS, **changes: object
) -> SimulatedEngine:
    """A quick simulated engine, not started."""
    settings = {"seed": SEED, "experts": experts, "decode_step_base_s": 0.001, "decode_step_per_seq_s": 0.0}
    simulated = SimulatedConfig.model_validate(settings | {"prefill_tokens_per_s": 1e6} | changes)
    return SimulatedEngine("sparse", EngineConfig(type=EngineType.SIMULATED, simulated=simulated), trunk=files)


@asynccontextmanager
async def running(files: TrunkFiles | None, **changes: object) -> AsyncIterator[SimulatedEngine]:
    """The same, started."""
    engine = engine_of(files, **changes)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def ask(
    engine: SimulatedEngine, prompt: str = "Hello, pools", tokens: int = 20, traffic: str = ""
) -> EngineReply:
    """One completion."""
    body = {"prompt": prompt, "max_tokens": tokens}
    return await engine.run(EngineRequest("r", Endpoint.COMPLETION, body, traffic=traffic), lambda _: None)
