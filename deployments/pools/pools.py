"""The deployment that knows all pools of a model: Serve's view of `PoolsKeeper`."""

from __future__ import annotations

import asyncio
import logging

from ray import serve

from cluster.experts.balancing import Report
from cluster.experts.pools import Holding
from deployments.names import pool_deployment_name
from deployments.paths import logs_path
from deployments.pools.checkpoint import open_checkpoint
from deployments.pools.keeper import PoolsKeeper
from deployments.pools.spec import PoolsSpec
from deployments.serve_internals import bind_replica_server_to_node, set_replicas
from deployments.telemetry.logs import setup_logging

_log = logging.getLogger(__name__)

_STOPPING = "STOPPING"


class ExpertPools:
    """It forwards to the keeper, which has Serve scale the deployments of its application."""

    async def __init__(self, spec: PoolsSpec, *_pools: object) -> None:  # type: ignore[misc]  # Serve awaits it
        bind_replica_server_to_node()
        self._spec = spec
        self._logs = setup_logging(f"pools-{spec.model}", logs_path(spec.state_dir), level=spec.telemetry.log_level)
        checkpoint = await asyncio.to_thread(open_checkpoint, spec)
        self._keeper = PoolsKeeper(spec, checkpoint, await asyncio.to_thread(_targets, spec), self._scale)
        self._keeper.start()
        _log.info("looking after %d pools", len(spec.names), extra={"model": spec.model})

    async def _scale(self, pool: str, replicas: int) -> None:
        await set_replicas(self._spec.application, pool_deployment_name(pool), replicas)

    async def told(self, report: Report) -> Holding:
        """For replicas of pools; see `PoolsKeeper.told`."""
        return await self._keeper.told(report)

    async def leaving(self, replica: str) -> bool:
        """For replicas of pools; see `PoolsKeeper.leaving`."""
        return await self._keeper.leaving(replica)

    async def map(self, trunk: str, node: str, known: int, works_by: int) -> str | None:
        """For trunks; see `PoolsKeeper.map`."""
        return await self._keeper.map(trunk, node, known, works_by)

    async def invoked(self, pool: str) -> None:
        """For trunks; see `PoolsKeeper.invoked`."""
        await self._keeper.invoked(pool)

    async def view(self) -> bytes:
        """For the ingress: `PoolsView` as JSON."""
        return await self._keeper.view()

    def check_health(self) -> None:
        """Serve's health check."""
        self._keeper.check()

    async def __del__(self) -> None:
        """Serve awaits this when it stops it gracefully."""
        keeper = getattr(self, "_keeper", None)
        if keeper is not None:
            keeper.stop()
            self._logs.close()


def _targets(spec: PoolsSpec) -> dict[str, int]:
    """Replicas that Serve has of each pool, starting ones included: it goes on with those that it was asked for."""
    deployments = serve.status().applications[spec.application].deployments
    found = {}
    for name in spec.names:
        states = deployments[pool_deployment_name(name)].replica_states
        found[name] = sum(count for state, count in states.items() if state != _STOPPING)
    return found
