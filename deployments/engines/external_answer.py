"""Reads an upstream's answer within bounds, and puts a plain one into the cluster's form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import httpx
import msgspec

from deployments.engines import external_errors
from deployments.engines.external_events import first_finish_reason, read_object, read_usage
from deployments.engines.protocol import Endpoint, EngineReply

MAX_RESPONSE_BYTES: Final = 32 * 1024 * 1024
"""Bytes of a whole answer, streamed or not: 256 vectors of 4096 numbers take about 22 million."""

MAX_ERROR_BYTES: Final = 64 * 1024
"""Bytes read of an answer that is an error."""

AFTER_DONE_S: Final = 1.0
"""Seconds that an upstream gets to end its response after `[DONE]`, so that the connection can be used again."""


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """An answer that came in one piece."""

    reply: EngineReply
    response_id: str | None
    response_model: str | None
    """What the upstream calls the model that answered."""


def plain_answer(model: str, endpoint: Endpoint, data: bytes) -> PlainAnswer:
    """The upstream's answer `data` under the cluster's name for the model. Raises `ApiError` for one that is none."""
    answer = read_object(data)
    if answer.get("error") is not None:
        raise external_errors.from_event(answer["error"])
    items = answer.get("data" if endpoint is Endpoint.EMBEDDING else "choices")
    if not isinstance(items, list) or not items:
        raise external_errors.malformed("it has no results")
    response_id, response_model = answer.get("id"), answer.get("model")
    answer["model"] = model
    return PlainAnswer(
        EngineReply(
            status=200,
            body=msgspec.json.encode(answer),
            usage=read_usage(answer),
            finish_reason=None if endpoint is Endpoint.EMBEDDING else first_finish_reason(items),
        ),
        response_id[:128] if isinstance(response_id, str) else None,
        response_model[:256] if isinstance(response_model, str) else None,
    )


async def read_all(response: httpx.Response) -> bytes:
    """The whole body. Raises `ApiError` 502 for one over the limit."""
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > MAX_RESPONSE_BYTES:
            raise external_errors.malformed(f"it is over {MAX_RESPONSE_BYTES} bytes")
    return bytes(data)


async def read_start(response: httpx.Response) -> bytes:
    """The first bytes of an error's body."""
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > MAX_ERROR_BYTES:
            break
    return bytes(data[:MAX_ERROR_BYTES])


async def drain(chunks: AsyncIterator[bytes]) -> None:
    """Read what follows `[DONE]`, usually nothing: a connection read to its end can be used again."""
    try:
        async with asyncio.timeout(AFTER_DONE_S):
            async for _ in chunks:
                pass
    except (TimeoutError, httpx.HTTPError):
        return
