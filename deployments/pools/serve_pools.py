"""The pools of a model as its trunk reaches them through Ray Serve."""

from __future__ import annotations

import ray
from ray.serve.handle import DeploymentHandle

from deployments.names import POOLS_DEPLOYMENT


class ServePools:
    """See `following.Pools`. `application`: Serve application of the pools; `trunk`: name of the replica."""

    def __init__(self, application: str, trunk: str) -> None:
        # Not `serve.get_deployment_handle`, which insists on a deployment that exists.
        self._handle: DeploymentHandle[object] = DeploymentHandle(POOLS_DEPLOYMENT, application)
        self._trunk = trunk
        self._node = ray.get_runtime_context().get_node_id()

    async def map(self, known: int, works_by: int) -> str | None:
        """The pool map for this node as JSON, once it is newer than `known`; the engine works by `works_by`."""
        found: str | None = await self._handle.map.remote(self._trunk, self._node, known, works_by)
        return found

    async def invoked(self, pool: str) -> None:
        """Tokens wait for a parked pool."""
        await self._handle.invoked.remote(pool)
