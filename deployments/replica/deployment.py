"""The replica as a Ray Serve deployment."""

from __future__ import annotations

import asyncio
import logging
import os

from ray import serve

from deployments.autoscaling import Figures
from deployments.channel.sender import IngressAddress
from deployments.experts.trunk_files import TrunkFiles
from deployments.paths import logs_path
from deployments.pools.following import PoolFollower
from deployments.pools.serve_pools import ServePools
from deployments.pools.spec import trunk_files
from deployments.replica.engines import make_engine
from deployments.replica.replica import Replica
from deployments.replica.spec import ReplicaCall, ReplicaSpec
from deployments.replica.tracing import ReplicaTracer
from deployments.replica.watcher import WatchLimits
from deployments.serve_internals import bind_replica_server_to_node
from deployments.telemetry.logs import setup_logging
from deployments.telemetry.setup import setup_telemetry

_log = logging.getLogger(__name__)

SAVE_S = 0.5
"""Seconds that a replica which gives itself up may take to save its spans."""


class ModelReplica:
    """Serve's view of a replica: it forwards to `Replica`."""

    async def __init__(self, spec: ReplicaSpec) -> None:  # type: ignore[misc]  # Serve awaits it
        bind_replica_server_to_node()
        if spec.model.replicas.nice:
            # Inherited by the engine's processes, which compute; the request path stays at the normal priority.
            os.setpriority(os.PRIO_PROCESS, 0, spec.model.replicas.nice)
        process = f"replica:{spec.name}"
        self._logs = setup_logging(f"replica-{spec.name}", logs_path(spec.state_dir), level=spec.telemetry.log_level)
        self._telemetry = setup_telemetry(process, spec.telemetry, spec.state_dir)
        name = serve.get_replica_context().replica_id.unique_id
        self._follower, trunk = await _follow_pools(spec, name)
        engine = make_engine(spec, trunk)
        self._replica = Replica(
            spec.name,
            name,
            engine,
            ReplicaTracer(spec.name, engine.kind),
            WatchLimits.of(spec.model.replicas.stall_timeout_s, 0.0 if trunk is None else trunk.longest_s),
            self._save,
        )
        self._figures = Figures()
        # While an engine starts, no request exists that its messages could repeat; they hold the cause if it fails.
        with self._logs.library_text():
            await self._replica.start(spec.model.replicas.start_timeout_s)
        self._logs.adopt_libraries()
        _log.info("serving", extra={"model": spec.name, "engine": engine.kind, "replica": name})

    def _save(self) -> None:
        """Write what is left of spans and logs, in a bounded time: the process is about to end."""
        self._telemetry.close(SAVE_S)
        self._logs.close()

    async def attach(self, address: IngressAddress) -> None:
        """Connect to an ingress."""
        await self._replica.attach(address)

    async def serve(self, call: ReplicaCall) -> None:
        """Serve one call; its answer goes over the channel."""
        await self._replica.serve(call)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks for it where a model is scaled: what loads this replica beside its requests."""
        replica = self._replica
        return self._figures.of(replica.stats(), replica.expert_load(), replica.pressed_level)

    def check_health(self) -> None:
        """Serve's health check."""
        self._replica.check()
        if self._follower is not None:
            self._follower.check()

    async def __del__(self) -> None:
        """Serve awaits this when it stops a replica gracefully."""
        replica = getattr(self, "_replica", None)
        if replica is not None:
            await replica.drain()
            if self._follower is not None:
                await self._follower.close()
            await asyncio.to_thread(self._telemetry.close)
            self._logs.close()


async def _follow_pools(spec: ReplicaSpec, name: str) -> tuple[PoolFollower | None, TrunkFiles | None]:
    """Finds the pools of a model that has some: its engine connects to them when it starts. Raises `EngineStartError`."""
    if spec.pools is None or spec.model.pools is None:
        return None, None
    files = trunk_files(spec.state_dir, name, spec.model.pools)
    follower = PoolFollower(ServePools(spec.pools, name), files)
    await follower.start(spec.model.replicas.start_timeout_s)
    return follower, files
