"""Reads a request's body within its bounds."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope

from cluster.api.errors import ApiError
from cluster.config.ingress import LimitsConfig


class ClientGoneError(ConnectionError):
    """The client closed the connection."""


async def read_body(scope: Scope, receive: Receive, limits: LimitsConfig) -> bytes:
    """The whole body.

    Raises `ApiError` 413 without reading past the limit, 408 for one that comes too slowly, and `ClientGoneError`.
    """
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), None)
    if declared is not None and declared.isdigit() and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.slow_client_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise ApiError(
            408, "request_timeout", f"The body took longer than {limits.slow_client_timeout_s:g} seconds to arrive."
        ) from None


def _too_large(limits: LimitsConfig) -> ApiError:
    return ApiError(
        413,
        "request_too_large",
        f"The body is larger than {limits.body_bytes} bytes, the limit of this cluster; send less at once.",
    )
