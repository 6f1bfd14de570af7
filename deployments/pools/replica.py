"""One replica of a pool of experts as a Ray Serve deployment: a server for trunks in a thread, and two reports a second."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.config.check_models import cores_of
from cluster.experts.balancing import Report, holding_of
from cluster.experts.placement import round_robin
from cluster.experts.pools import Holding
from deployments.engines.protocol import EngineDeadError
from deployments.names import POOLS_DEPLOYMENT
from deployments.paths import logs_path
from deployments.pools.checkpoint import expert_dtype, expert_kernel_of, open_checkpoint
from deployments.pools.counts import counts_of
from deployments.pools.spec import PoolsSpec, pools_folder, secret_path
from deployments.serve_internals import bind_replica_server_to_node
from deployments.telemetry.log_safety import Safe
from deployments.telemetry.logs import setup_logging

if TYPE_CHECKING:
    import socket

    from deployments.experts.pool import ExpertPool
    from deployments.experts.pool_server import PoolServer

_log = logging.getLogger(__name__)

TELL_S = 0.5
"""Seconds between two reports."""
LEAVE_S = 3.0
"""Seconds that trunks may take to let go of a replica which is to stop."""
MAX_SOCKET_PATH = 100
"""Characters; the kernel takes a few more."""


class PoolReplica:
    """Holds the experts of one pool for as long as it lives, and changes them when it is told to."""

    async def __init__(self, spec: PoolsSpec, pool: str) -> None:  # type: ignore[misc]  # Serve awaits it
        bind_replica_server_to_node()
        self._spec, self._pool_name = spec, pool
        self._name = serve.get_replica_context().replica_id.unique_id
        self._logs = setup_logging(
            f"pool-{spec.model}-{pool}", logs_path(spec.state_dir), level=spec.telemetry.log_level
        )
        # Before torch is imported: it reads it once.
        os.environ["OMP_NUM_THREADS"] = str(spec.pools.threads)
        self._pool, self._server, self._addresses = await asyncio.to_thread(self._load)
        self._holds: Holding = self._pool.holds
        self._thread = threading.Thread(target=self._serve, name=f"pool-{pool}", daemon=True)
        self._thread.start()
        self._pools: DeploymentHandle[object] | None = None
        self._telling = asyncio.get_running_loop().create_task(self._tell())
        _log.info("serving", extra={"model": spec.model, "replica": self._name})

    def _load(self) -> tuple[ExpertPool, PoolServer, list[str]]:
        import torch

        from deployments.experts.pool import ExpertPool
        from deployments.experts.pool_server import PoolServer
        from deployments.experts.wire import address_of

        spec = self._spec
        self._checkpoint = open_checkpoint(spec)
        layers, experts = self._checkpoint.layers, self._checkpoint.experts
        placement = round_robin(len(layers), experts, len(spec.names))
        holds = holding_of(placement, spec.names.index(self._pool_name), layers)
        torch.set_num_threads(spec.pools.threads)
        pool = ExpertPool(self._checkpoint, holds, expert_dtype(spec), expert_kernel_of(spec))
        listening = self._listen()
        server = PoolServer(
            pool,
            listening,
            self._name,
            self._checkpoint.fingerprint(),
            secret_path(spec.state_dir).read_bytes().strip(),
            pairs_per_s=spec.pools.quota_pairs_per_s,
        )
        return pool, server, [address_of(one) for one in listening]

    def _listen(self) -> list[socket.socket]:
        """For trunks on this node a Unix socket, for those on others a port at the node's own address."""
        from deployments.experts.wire import listen

        host = ray.util.get_node_ip_address()
        found = [listen(f"tcp:[{host}]:0" if ":" in host else f"tcp:{host}:0")]
        path = str(pools_folder(self._spec.state_dir).resolve() / f"{self._pool_name}-{self._name[-8:]}.sock")
        if len(path) <= MAX_SOCKET_PATH:
            found.append(listen(f"unix:{path}"))
        return found

    def _serve(self) -> None:
        cores = self._spec.pools.cpu_cores
        if cores is not None:
            usable = set(cores_of(cores)) & os.sched_getaffinity(0)
            if usable:
                # This thread and those that it computes with, not the ones of Ray.
                os.sched_setaffinity(0, usable)
        # Whatever ends it is told by the thread's own report of it, and by the health check.
        self._server.run()

    async def _tell(self) -> None:
        """Report again and again, and hold what the answer says."""
        while True:
            try:
                wanted = await self._report()
                if wanted is not None and wanted != self._holds:
                    await asyncio.to_thread(self._hold, wanted)
            except Exception as error:  # noqa: BLE001 - the one that is told may be starting anew
                _log.warning("pool %s could not report: %s", Safe(self._pool_name), type(error).__name__)
            await asyncio.sleep(TELL_S)

    async def _report(self) -> Holding | None:
        if self._pools is None:
            self._pools = DeploymentHandle(POOLS_DEPLOYMENT, self._spec.application)
        told = await asyncio.to_thread(self._server.report)
        return await self._pools.told.remote(self._of(told))  # type: ignore[no-any-return]

    def _of(self, told: dict[str, Any]) -> Report:
        return Report(
            pool=self._pool_name,
            replica=self._name,
            node=ray.get_runtime_context().get_node_id(),
            unix=next((one for one in self._addresses if one.startswith("unix:")), ""),
            tcp=next(one for one in self._addresses if one.startswith("tcp:")),
            holds=self._holds,
            tokens=counts_of(told["tokens"], self._checkpoint.layers, self._checkpoint.experts),
            busy_s=float(told["busy_s"]),
            queue_rows=int(told["queue_rows"]),
            weight_bytes=int(told["weight_bytes"]),
            overhead_bytes=int(told["overhead_bytes"]),
        )

    def _hold(self, wanted: Holding) -> None:
        prepared = self._pool.prepare(wanted)
        self._server.adopt(prepared)
        self._holds = wanted

    def check_health(self) -> None:
        """Serve's health check."""
        if not self._thread.is_alive():
            raise EngineDeadError(f"the server of pool {self._pool_name!r} has ended")

    async def __del__(self) -> None:
        """Serve awaits this when it stops a replica gracefully: trunks let go first, so no batch has to be sent twice."""
        if getattr(self, "_telling", None) is None:
            return
        goes = False
        with suppress(Exception):
            # It may have ended before us: then all of the pools end, and trunks with them.
            async with asyncio.timeout(LEAVE_S):
                goes = self._pools is not None and await self._pools.leaving.remote(self._name)
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S if goes else self._spec.config.replicas.drain_timeout_s + LEAVE_S):
                while (await asyncio.to_thread(self._server.report))["trunks"]:
                    await asyncio.sleep(0.1)
        self._telling.cancel()
        self._server.stop()
        await asyncio.to_thread(self._thread.join, LEAVE_S)
        self._remove_sockets()
        self._logs.close()

    def _remove_sockets(self) -> None:
        for address in self._addresses:
            if address.startswith("unix:"):
                Path(address.removeprefix("unix:")).unlink(missing_ok=True)
