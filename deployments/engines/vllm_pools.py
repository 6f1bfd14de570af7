"""What expert pools did for requests of a vLLM engine that is a trunk, from the replica's side."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from cluster.experts.pool_use import PoolUse, together
from deployments.engines.vllm_asking import ask
from deployments.experts.uses import use_from

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

    from deployments.engines.vllm_kv import Watched

_log = logging.getLogger(__name__)

USE_METHOD: Final = "pointsman_pool_use"
"""What `vllm_trunk_core` adds to vLLM's engine core."""


class VllmPools:
    """Of one engine."""

    def __init__(self, engine: AsyncLLM) -> None:
        self._engine = engine

    async def take(self, notes: Watched) -> PoolUse | None:
        """For a request that has ended; None: nothing. Raises nothing: the answer is whole."""
        try:
            told = [await ask(self._engine, USE_METHOD, request_id) for request_id in notes.request_ids]
        except Exception:  # noqa: BLE001 - see above
            _log.exception("what pools did for a request is not told")
            return None
        return together([use_from(one) for one in told if one is not None])
