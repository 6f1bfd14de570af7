"""A replica on its precision ladder: carries out orders, one at a time, and says what came of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from msgspec.structs import replace

from cluster.precision.measures import OWN
from cluster.records.precision_change import PrecisionChange
from deployments.channel.messages import LadderPosition, Order
from deployments.engines.kv_precision import KvSwitch
from deployments.engines.protocol import Engine, EngineDeadError
from deployments.telemetry.log_format import log_event
from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)


class ReplicaLadder:
    """Where one replica stands. `on_move` is told when an order begins or ends, `on_change` what came of it."""

    def __init__(
        self,
        model: str,
        replica_id: str,
        engine: Engine,
        on_change: Callable[[PrecisionChange], None],
        on_move: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._replica_id = replica_id
        self._engine = engine
        self._on_change = on_change
        self._on_move = on_move
        self.position = LadderPosition()

    async def obey(self, order: Order) -> None:
        """Carry out an order. One that comes while another is under way is dropped: it was decided without knowing of that.

        Where the KV precision does not change as ordered, the level does all the same. Raises `EngineDeadError` if the
        engine ended over it.
        """
        before = self.position
        if before.under_way or order.id == before.order:
            return
        if (order.measures, order.kv_precision) == (before.measures, before.kv_precision):
            self.position = replace(before, order=order.id, cause=order.cause)
            self._on_move()
            return
        self.position = replace(before, under_way=order.id)
        self._on_move()
        stats = self._engine.stats()
        switch = KvSwitch(stats.kv_precision, stats.kv_precision, 0.0, 0, 0, stats.kv_blocks, stats.kv_blocks)
        error: str | None = None
        try:
            if order.kv_precision != before.kv_precision:
                switch, error = await self._switch(order, switch)
        finally:
            self.position = replace(self.position, under_way="", order=order.id)
        self._settle(before, order, switch, error)

    async def _switch(self, order: Order, unchanged: KvSwitch) -> tuple[KvSwitch, str | None]:
        """What the change did; and why it failed, if it did."""
        try:
            return await self._engine.set_kv_precision(order.kv_precision), None
        except EngineDeadError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the engine serves on, and the order has an end
            if not getattr(error, "log_safe", False):
                _log.exception("the KV precision did not change", extra={"model": self._model})
                return unchanged, type(error).__name__
            return unchanged, str(error)

    def _settle(self, before: LadderPosition, order: Order, switch: KvSwitch, error: str | None) -> None:
        now = time.time()
        tried = order.kv_precision != before.kv_precision
        switched = tried and error is None
        own_blocks = switch.blocks_before if before.kv_precision == OWN else before.own_kv_blocks
        self.position = LadderPosition(
            level=order.level,
            level_since=now if order.measures != before.measures else before.level_since,
            kv_precision=order.kv_precision if switched else before.kv_precision,
            kv_since=now if switched else before.kv_since,
            own_kv_blocks=own_blocks,
            measures=order.measures,
            cause=order.cause,
            kv_failed=now if tried and error is not None else (0.0 if tried else before.kv_failed),
            kv_failures=(before.kv_failures + 1 if error is not None else 0) if tried else before.kv_failures,
            order=order.id,
        )
        change = PrecisionChange(
            id=order.id,
            at=now,
            model=self._model,
            replica=self._replica_id,
            cause=order.cause,
            reason=order.reason,
            level_before=before.level,
            level=order.level,
            level_name=order.level_name,
            kv_before=switch.before,
            kv_after=switch.after,
            pause_s=switch.pause_s,
            preempted=switch.preempted,
            tokens=switch.tokens,
            blocks_before=switch.blocks_before,
            blocks_after=switch.blocks_after,
            error=error,
        )
        log_event(
            _log,
            logging.INFO if error is None else logging.ERROR,
            "precision_changed" if error is None else "kv_precision_not_changed",
            model=self._model,
            replica=self._replica_id,
            to_level=change.level,
            kv=Safe(change.kv_after),
            reason=Safe(change.reason),
            cause=Safe(error or change.cause),
        )
        self._on_change(change)
        self._on_move()
