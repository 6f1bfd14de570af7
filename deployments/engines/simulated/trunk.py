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
from cluster.experts.pool_use import PoolUse
from cluster.experts.pools import PoolMapError
from deployments.engines.protocol import EngineDeadError, EngineStartError
from deployments.engines.simulated.core import Step
from deployments.engines.simulated.routing import Router
from deployments.engines.simulated.sequence import Sequence
from deployments.engines.simulated.trunk_rows import Batch, Inputs, batch_of, differs
from deployments.experts.step_use import StepUse
from deployments.experts.synthetic import DTYPE, simulated_checkpoint
from deployments.experts.trunk_files import TrunkFiles
from deployments.experts.uses import Uses, use_from

if TYPE_CHECKING:
    from deployments.experts.client import PoolClient

_log = logging.getLogger(__name__)

CLOSE_S: Final = 1.0
"""Seconds that closing waits for a step that waits for pools; its thread then ends by itself."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A step that pools work on."""

    batch: Batch
    answered: Future[tuple[float, StepUse | None]]
    """Seconds that they took, and what they did."""


class SimulatedTrunk:
    """The pools of one engine. A thread of its own waits for them, so that the event loop never does."""

    def __init__(self, name: str, config: SimulatedExperts, seed: int, files: TrunkFiles, max_requests: int) -> None:
        self._name, self._files = name, files
        self._checkpoint = simulated_checkpoint(config, seed)
        self._inputs = Inputs(config, self._checkpoint.shape.hidden, seed)
        self._random = random.Random(seed)
        self._owners: dict[str, tuple[str, Router]] = {}
        self._uses = Uses(max_requests)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"simulated-trunk-{name}")
        self._closing = threading.Event()
        self._client: PoolClient | None = None

    async def open(self) -> None:
        """Connect to the pools. Raises `EngineStartError`."""
        await asyncio.wrap_future(self._thread.submit(self._open))

    def follow(self, request: str, sequences: Iterable[Sequence], router: Router) -> None:
        """A request begins; its tokens go where `router` says."""
        for sequence in sequences:
            self._owners[sequence.key] = request, router

    def end(self, request: str, sequences: Iterable[Sequence]) -> PoolUse | None:
        """It has ended, or was cancelled: what pools did for it; None: nothing."""
        for sequence in sequences:
            self._owners.pop(sequence.key, None)
        told = self._uses.take(lambda known: known == request)
        return None if told is None else use_from(told)

    def begin(self, step: Step) -> Sent | None:
        """Send the rows of a step; None if it has none. To be handed to `finish`."""
        batch = batch_of(step, self._owners.get)
        return Sent(batch, self._thread.submit(self._compute, batch)) if batch.requests else None

    async def finish(self, sent: Sent) -> float:
        """Wait for the answers; returns the seconds that they took. Raises `EngineDeadError`."""
        took, use = await asyncio.wrap_future(sent.answered)
        if use is not None:
            self._uses.note(use, sent.batch.requests, sent.batch.starts)
            gone = set(sent.batch.requests) - {request for request, _ in self._owners.values()}
            self._uses.take(lambda known: known in gone)
        return took

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
        from deployments.experts.client import PoolClient
        from deployments.experts.job import PoolsUnreachableError
        from deployments.experts.link import Model

        checkpoint = self._checkpoint
        model = Model(checkpoint.fingerprint(), DTYPE, checkpoint.shape.hidden)
        try:
            client = PoolClient(self._files, checkpoint.layers, checkpoint.experts, model)
            client.open()
        except (OSError, PoolMapError, PoolsUnreachableError) as error:
            raise EngineStartError(
                f"the simulated engine of model {self._name!r} cannot use its pools of experts: {error}; "
                "look at the pools of this model, and at their map"
            ) from error
        self._client = client

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _compute(self, batch: Batch) -> tuple[float, StepUse | None]:
        """All layers of a step, on the thread: seconds, and what pools did. Raises `EngineDeadError`."""
        from deployments.experts.job import PoolsUnreachableError

        begun = time.perf_counter()
        ids, experts = batch.ids(), batch.experts(self._checkpoint.experts)
        row = self._random.randrange(len(ids))
        try:
            for layer in self._checkpoint.layers:
                if self._closing.is_set():
                    break
                self._layer(layer, ids, experts[layer], row)
        except PoolsUnreachableError as error:
            raise EngineDeadError(f"the simulated engine of model {self._name!r} has ended: {error}") from error
        return time.perf_counter() - begun, self._connected.take_step()

    def _layer(self, layer: int, ids: npt.NDArray[np.int64], experts: npt.NDArray[np.int32], row: int) -> None:
        """One layer; the sum that came back for `row` is checked unless other experts stood in somewhere in the layer."""
        import torch

        client = self._connected
        x, weights = self._inputs.of(layer, ids)
        before = client.degraded_rows
        client.begin(
            layer,
            torch.from_numpy(x),
            torch.from_numpy(weights),
            torch.from_numpy(experts),
            lambda: torch.from_numpy(self._inputs.scores(layer, experts)),
        )
        got = client.finish()[row].numpy()
        if client.degraded_rows > before:
            return
        if differs(got, self._checkpoint.answer(layer, x[row], experts[row], weights[row])):
            raise EngineDeadError(
                f"the simulated engine of model {self._name!r} has ended: pools answered wrong in layer {layer}"
            )
