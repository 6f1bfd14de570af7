"""All messages that cross the channel, and their framing.

A frame is a four-byte big-endian length and one msgpack array of messages. Nothing is ever unpickled here.
"""

from __future__ import annotations

import asyncio

import msgspec

from cluster.experts.load import ExpertLoad
from cluster.precision.measures import NORMAL, OWN
from cluster.records.precision_change import PrecisionChange
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
    weights: str = ""
    """Number format of the weights, for example `int8`; empty: not known."""
    kv_precisions: tuple[str, ...] = ()
    """What the engine can change its KV precision to while it runs."""
    kv_blockers: tuple[str, ...] = ()
    """Why it cannot, each by name."""
    temperature: float = 1.0
    """What the engine samples with where a request leaves it open."""
    top_p: float = 1.0
    """Likewise, 0 to 1."""
    expert_blockers: tuple[str, ...] = ()
    """Why the engine does not tell which experts its tokens go to, each by name; empty: it tells."""


class LadderPosition(msgspec.Struct, frozen=True, array_like=True):
    """Where a replica stands on its precision ladder. Times are Unix time, seconds; 0: never."""

    level: int = 0
    level_since: float = 0.0
    kv_precision: str = OWN
    """As it was ordered: `auto` or what it was lowered to."""
    kv_since: float = 0.0
    own_kv_blocks: int = 0
    """KV blocks at the model's own precision; 0: not known."""
    measures: tuple[str, ...] = ()
    """Measures in force, in the order in which they were taken."""
    cause: str = ""
    """Why it went to that level, a word; empty: it never changed."""
    kv_failed: float = 0.0
    """When a change of its KV precision failed last; 0: the last one did not."""
    kv_failures: int = 0
    """Changes that failed one after the other."""
    order: str = ""
    """Id of the last order that ended, well or not."""
    under_way: str = ""
    """Id of the order that is being carried out; empty: none is."""


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
    position: LadderPosition = LadderPosition()
    leads: bool = False
    """Whether this ingress is the one whose orders the replica takes: of all that it is connected to, exactly one."""


class Cancel(msgspec.Struct, frozen=True, tag=5, array_like=True):
    """Ingress to replica: the caller is gone, free what the stream holds."""

    stream: str


class Leaving(msgspec.Struct, frozen=True, tag=6, array_like=True):
    """The replica drains: it finishes its streams and takes no new ones. `reason` is for people."""

    reason: str


class Order(msgspec.Struct, frozen=True, tag=7, array_like=True):
    """Ingress to replica: go to another level of the precision ladder."""

    id: str
    measures: tuple[str, ...]
    """Measures that are to be in force, in their order: as many as the level."""
    kv_precision: str
    """`auto` or what the KV cache is to be lowered to."""
    cause: str
    reason: str

    @property
    def level(self) -> int:
        """Level of the precision ladder, 0 for normal."""
        return len(self.measures)

    @property
    def level_name(self) -> str:
        """Its last measure, or `normal`."""
        return self.measures[-1] if self.measures else NORMAL


class Changed(msgspec.Struct, frozen=True, tag=8, array_like=True):
    """How an order ended."""

    change: PrecisionChange


class Experts(msgspec.Struct, frozen=True, tag=9, array_like=True):
    """Tokens by expert since the engine's start. Sent when they changed, at most once a second."""

    load: ExpertLoad


Message = Hello | Accepted | Events | Ended | Stats | Cancel | Leaving | Order | Changed | Experts

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
