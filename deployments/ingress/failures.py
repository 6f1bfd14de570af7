"""Failures of the serving side, in OpenAI's error form."""

from __future__ import annotations

import json
from typing import Final

from cluster.api.errors import ApiError
from cluster.config.cluster import ClusterConfig
from deployments.channel.stream import ReplicaLostError, SlowReaderError
from deployments.engines.protocol import EngineReply
from deployments.ingress.dispatch import NoReplicaError, QueueFullError

STREAM_BROKEN: Final = 502
"""Status on the books for a stream that broke after its head was sent."""

CLIENT_GONE: Final = 499
"""Status on the books for a caller who did not wait for the answer."""

RESTART_S: Final = 10
"""What `Retry-After` says while a model has no replica: about what it takes to notice and to start one."""


def to_api_error(error: Exception, config: ClusterConfig) -> ApiError:
    """What the caller is told when a request got no answer."""
    if isinstance(error, QueueFullError):
        return ApiError(
            429,
            "queue_full",
            "The model's queue is full; try again in a moment, or name another model or role.",
            type="rate_limit_error",
            headers={"retry-after": "1"},
        )
    if isinstance(error, NoReplicaError):
        return ApiError(
            503,
            "no_replica",
            "No replica of the model can answer now; it is being restarted. `/readyz` names the models that can.",
            type="server_error",
            headers={"retry-after": str(RESTART_S)},
        )
    if isinstance(error, SlowReaderError):
        return ApiError(
            500,
            "answer_too_large",
            f"The answer is larger than {config.ingress.limits.max_buffered_bytes_per_stream} bytes "
            "(ingress.limits.max_buffered_bytes_per_stream); ask for fewer tokens or log probabilities.",
            type="server_error",
        )
    return ApiError(
        503,
        "replica_lost",
        "The replica that worked on the request was lost, and so were those that took over; try again.",
        type="server_error",
        headers={"retry-after": "1"},
    )


def too_long(limit_s: float) -> ApiError:
    """The contract's time is over."""
    return ApiError(
        504,
        "timeout",
        f"The request took longer than {limit_s:g} seconds, the limit of its role; ask for fewer tokens.",
        type="server_error",
    )


def waited(model: str, limit_s: float, retry_after_s: int) -> ApiError:
    """The contract's time was over before the model had room."""
    message = (
        f"The model {model} is saturated: the request waited for {limit_s:g} s, all that its role allows. "
        f"Try again in {retry_after_s} s."
    )
    return ApiError(503, "saturated", message, type="server_error", headers={"retry-after": str(retry_after_s)})


def no_answer(reason: str) -> ApiError:
    """No attempt at a judged request has an answer, and passages cannot take its place."""
    return ApiError(
        503,
        "no_answer",
        f"No attempt at the request gave an answer that can be sent: {reason}. Try again.",
        type="server_error",
        headers={"retry-after": "1"},
    )


def retry_headers(reply: EngineReply) -> dict[str, str]:
    """When to come back, for an engine's own 429 and 503."""
    if reply.status not in (429, 503):
        return {}
    return {"retry-after": str(1 if reply.retry_after_s is None else reply.retry_after_s)}


def require_reply(reply: EngineReply | None) -> EngineReply:
    """The reply of an answer that has ended. Raises `ReplicaLostError` if it ended without one."""
    if reply is None:
        raise ReplicaLostError("that answered")
    return reply


def error_event(body: bytes) -> bytes:
    """A JSON error body as an event."""
    return b"data: " + body + b"\n\n"


def stream_error(error: Exception) -> bytes:
    """The event that ends a broken stream. No `[DONE]` follows, so no client takes the answer for whole."""
    if isinstance(error, SlowReaderError):
        code, message = "slow_reader", "The answer was not read fast enough and was ended."
    elif isinstance(error, TimeoutError):
        code, message = "timeout", "The answer took longer than its role allows and was ended."
    else:
        code, message = "replica_lost", "The replica was lost in the middle of the answer; what came so far is valid."
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
    return error_event(json.dumps(body).encode())
