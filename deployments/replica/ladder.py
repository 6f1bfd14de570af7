"""A replica on its precision ladder: carries out orders, one at a time, and says what came of each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from cluster.records.precision_change import PrecisionChange
from deployments.channel.messages import LadderPosition, Order
from deployments.engines.kv_precision import OWN, KvPrecisionError, KvSwitch
from deployments.engines.protocol import Engine
from deployments.telemetry.log_format import log_event
from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)

MAX_WAITING = 4
"""Orders that wait for the one under way; an ingress sends one at a time."""


class ReplicaLadder:
    """Where one replica stands. `on_change` is told of each order's end."""

    def __init__(
        self, model: str, replica_id: str, engine: Engine, on_change: Callable[[PrecisionChange], None]
    ) -> None:
        self._model = model
        self._replica_id = replica_id
        self._engine = engine
        self._on_change = on_change
        self._waiting = 0
        self._one_at_a_time = asyncio.Lock()
        self._name = "normal"
        self.position = LadderPosition()

    async def obey(self, order: Order) -> None:
        """Go to the level of `order`. Raises `EngineDeadError` if the engine ended over it."""
        if self._waiting >= MAX_WAITING or order.id == self.position.order:
            return
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                await self._go(order)
        finally:
            self._waiting -= 1

    async def _go(self, order: Order) -> None:
        position, stats = self.position, self._engine.stats()
        own_blocks = stats.kv_blocks if position.kv_precision == OWN else position.own_kv_blocks
        blocks = stats.kv_blocks
        switch = KvSwitch(stats.kv_precision, stats.kv_precision, 0.0, 0, 0, blocks, blocks)
        error: str | None = None
        if order.kv_precision != position.kv_precision:
            try:
                switch = await self._engine.set_kv_precision(order.kv_precision)
            except KvPrecisionError as refused:
                error = str(refused)
        now = time.time()
        if error is None:
            self.position = LadderPosition(
                level=order.level,
                level_since=now if order.level != position.level else position.level_since,
                kv_precision=order.kv_precision,
                kv_since=now if order.kv_precision != position.kv_precision else position.kv_since,
                own_kv_blocks=own_blocks,
                order=order.id,
            )
        else:
            # It counts as a change all the same: what failed is not tried again before the dwell time is over.
            self.position = LadderPosition(
                position.level, position.level_since, position.kv_precision, now, own_blocks, order.id
            )
        change = PrecisionChange(
            id=order.id,
            at=now,
            model=self._model,
            replica=self._replica_id,
            cause=order.cause,
            reason=order.reason,
            level_before=position.level,
            level=self.position.level,
            level_name=order.level_name if error is None else self._name,
            kv_before=switch.before,
            kv_after=switch.after,
            pause_s=switch.pause_s,
            preempted=switch.preempted,
            tokens=switch.tokens,
            blocks_before=switch.blocks_before,
            blocks_after=switch.blocks_after,
            error=error,
        )
        self._name = change.level_name
        log_event(
            _log,
            logging.INFO if error is None else logging.ERROR,
            "precision_changed" if error is None else "precision_not_changed",
            model=self._model,
            replica=self._replica_id,
            to_level=change.level,
            kv=Safe(change.kv_after),
            reason=Safe(change.reason),
            cause=Safe(error or change.cause),
        )
        self._on_change(change)
