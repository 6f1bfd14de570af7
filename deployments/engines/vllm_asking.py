"""Calls a method of vLLM's engine core that `vllm_internals` has added to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from deployments.engines.protocol import EngineDeadError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

LOOK_EVERY_S: Final = 0.2
"""How often to see whether an engine that has not answered yet is still alive."""


async def ask(engine: AsyncLLM, method: str, *args: object) -> Any:
    """What the method answers, between two steps. Raises `EngineDeadError` if the engine ends first; vLLM would wait for ever."""
    answer = asyncio.ensure_future(engine.engine_core.call_utility_async(method, *args))
    try:
        while not (await asyncio.wait({answer}, timeout=LOOK_EVERY_S))[0]:
            if engine.errored:
                raise EngineDeadError("the engine ended before it answered")
        return answer.result()
    finally:
        answer.cancel()
