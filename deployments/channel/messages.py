"""All messages that cross the channel, and their framing.

A frame is a four-byte big-endian length and one msgpack array of messages. Nothing is ever unpickled here.
"""

from __future__ import annotations

import asyncio

import msgspec

from deployments.engines.protocol import EngineReply, EngineStats

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A frame larger than this is a protocol error; the connection is cut."""

_LENGTH_BYTES = 4


class Hello(msgspec.Struct, frozen=True, tag=0, array_like=True):
    """First message of a replica. `secret` proves that it was invited by this ingress."""

    secret: str
    replica_id: str
    model: str
    engine: str
    pid: int
    engine_pids: tuple[int, ...]


class Accepted(msgspec.Struct, frozen=True, tag=1, array_like=True):
    """The replica took the stream: from now on its connection answers for it."""

    stream: str


class Events(msgspec.Struct, frozen=True, tag=2, array_like=True):
    """Encoded server-sent events of one stream, in order."""

    stream: str
    data: bytes


class Ended(msgspec.Struct, frozen=True, tag=3, array_like=True):
    """The last message of a stream."""

    stream: str
    reply: EngineReply


class Stats(msgspec.Struct, frozen=True, tag=4, array_like=True):
    """Sent on change and at least once a second: it is the heartbeat of the replica."""

    stats: EngineStats


class Cancel(msgspec.Struct, frozen=True, tag=5, array_like=True):
    """Ingress to replica: the caller is gone, free what the stream holds."""

    stream: str


class Leaving(msgspec.Struct, frozen=True, tag=6, array_like=True):
    """The replica drains: it finishes its streams and takes no new ones. `reason` is for people."""

    reason: str


Message = Hello | Accepted | Events | Ended | Stats | Cancel | Leaving

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Message])


class ChannelError(ConnectionError):
    """The peer broke the protocol."""


def encode_frame(messages: list[Message]) -> bytes:
    """One frame, ready to write."""
    payload = _encoder.encode(messages)
    return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload


async def read_frame(reader: asyncio.StreamReader, limit: int = MAX_FRAME_BYTES) -> list[Message]:
    """The next frame's messages. Raises `asyncio.IncompleteReadError` at the end, `ChannelError` if it is malformed."""
    size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if size > limit:
        raise ChannelError(f"a frame of {size} bytes is over the limit of {limit}")
    payload = await reader.readexactly(size)
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ChannelError(f"a frame does not decode: {error}") from None
