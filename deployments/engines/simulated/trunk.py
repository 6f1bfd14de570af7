"""A simulated engine as a trunk: each step sends rows to pools of experts over the real channel, and the answers are checked.

What the engine says does not depend on them; that they are right, and how long they take, does.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cluster.config.engine import SimulatedExperts
from cluster.experts.pools import PoolMapError, parse_pool_map
from deployments.engines.protocol import EngineDeadError, EngineStartError
from deployments.engines.simulated.core import Step
from deployments.engines.simulated.pool_notes import RequestPools, StepUse, note
from deployments.engines.simulated.routing import Router
from deployments.engines.simulated.sequence import Sequence
from deployments.engines.simulated.trunk_rows import Batch, Inputs, batch_of, differs
from deployments.experts.synthetic import DTYPE, simulated_checkpoint
from deployments.experts.trunk_files import TrunkFiles

if TYPE_CHECKING:
    from deployments.experts.client import PoolClient

_log = logging.getLogger(__name__)

CLOSE_S: Final = 1.0
"""Seconds that closing waits for a step that waits for pools; its thread then ends by itself."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A step that pools work on."""

    batch: Batch
    answered: Future[StepUse]


class SimulatedTrunk:
    """The pools of one engine. A thread of its own waits for them, so that the event loop never does."""

    def __init__(self, name: str, config: SimulatedExperts, seed: int, files: TrunkFiles) -> None:
        self._name, self._files = name, files
        self._checkpoint = simulated_checkpoint(config, seed)
        self._inputs = Inputs(config, self._checkpoint.shape.hidden, seed)
        self._random = random.Random(seed)
        self._owners: dict[str, RequestPools] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"simulated-trunk-{name}")
        self._closing = threading.Event()
        self._client: PoolClient | None = None

    async def open(self) -> None:
        """Connect to the pools. Raises `EngineStartError`."""
        await asyncio.wrap_future(self._thread.submit(self._open))

    def follow(self, sequences: Iterable[Sequence], router: Router) -> RequestPools:
        """Note from now on what pools do for these sequences of a request, whose tokens go where `router` says."""
        owner = RequestPools(router)
        for sequence in sequences:
            self._owners[sequence.key] = owner
        return owner

    def forget(self, sequences: Iterable[Sequence]) -> None:
        """Their request has ended."""
        for sequence in sequences:
            self._owners.pop(sequence.key, None)

    def begin(self, step: Step) -> Sent | None:
        """Send the rows of a step; None if it has none. To be handed to `finish`."""
        batch = batch_of(step, self._owners.get)
        return Sent(batch, self._thread.submit(self._compute, batch)) if batch.owners else None

    async def finish(self, sent: Sent) -> float:
        """Wait for the answers; returns the seconds that they took. Raises `EngineDeadError`."""
        use = await asyncio.wrap_future(sent.answered)
        note(use, sent.batch.owners)
        return use.ended_s - use.begun_s

    async def report(self) -> dict[str, Any]:
        """See `PoolClient.report`; between two steps."""
        return await asyncio.wrap_future(self._thread.submit(self._connected.report))

    async def close(self) -> None:
        """Let go of the pools. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        closed = self._thread.submit(self._close)
        self._thread.shutdown(wait=False)
        await asyncio.wait({asyncio.wrap_future(closed)}, timeout=CLOSE_S)

    @property
    def _connected(self) -> PoolClient:
        if self._client is None:
            raise EngineDeadError(f"the simulated engine of model {self._name!r} is not connected to its pools")
        return self._client

    def _open(self) -> None:
        # These import torch, which simulated engines without pools do without.
        from deployments.experts.client import Limits, PoolClient, PoolsUnreachableError
        from deployments.experts.link import Model

        try:
            pool_map = parse_pool_map(self._files.map.read_bytes())
            secret = self._files.secret.read_bytes().strip()
            checkpoint = self._checkpoint
            model = Model(checkpoint.fingerprint(), DTYPE, checkpoint.shape.hidden)
            limits = Limits(self._files.answer_s, self._files.outage_s)
            client = PoolClient(pool_map, checkpoint.layers, checkpoint.experts, model, secret, limits)
            try:
                client.open()
            except PoolsUnreachableError:
                client.close()
                raise
        except (OSError, PoolMapError, PoolsUnreachableError) as error:
            raise EngineStartError(
                f"the simulated engine of model {self._name!r} cannot use its pools of experts: {error}; "
                "look at the pools of this model, and at their map"
            ) from error
        self._client = client

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _compute(self, batch: Batch) -> StepUse:
        """All layers of a step, on the thread. Raises `EngineDeadError`."""
        from deployments.experts.client import PoolsUnreachableError

        client = self._connected
        begun_s, begun = time.time(), time.perf_counter()
        ids, experts = batch.ids(), batch.experts(self._checkpoint.experts)
        row = self._random.randrange(len(ids))
        client.degraded.clear()
        try:
            for layer in self._checkpoint.layers:
                if self._closing.is_set():
                    break
                self._layer(layer, ids, experts[layer], row)
        except PoolsUnreachableError as error:
            raise EngineDeadError(f"the simulated engine of model {self._name!r} has ended: {error}") from error
        took = time.perf_counter() - begun
        none = np.zeros(len(ids), np.int64)
        degraded = none.copy()
        for degraded_row, layers in client.degraded.items():
            degraded[degraded_row] = layers
        return StepUse(begun_s, begun_s + took, took, {}, {}, none, degraded)

    def _layer(self, layer: int, ids: npt.NDArray[np.int64], experts: npt.NDArray[np.int32], row: int) -> None:
        """One layer; the sum that came back for `row` is checked unless other experts stood in."""
        import torch

        client = self._connected
        x, weights = self._inputs.of(layer, ids)
        before = client.degraded.get(row, 0)
        client.begin(
            layer,
            torch.from_numpy(x),
            torch.from_numpy(weights),
            torch.from_numpy(experts),
            lambda: torch.from_numpy(self._inputs.scores(layer, experts)),
        )
        got = client.finish()[row].numpy()
        if client.degraded.get(row, 0) > before:
            return
        if differs(got, self._checkpoint.answer(layer, x[row], experts[row], weights[row])):
            raise EngineDeadError(
                f"the simulated engine of model {self._name!r} has ended: pools answered wrong in layer {layer}"
            )
