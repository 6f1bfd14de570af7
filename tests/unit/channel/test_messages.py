from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.records.precision_change import PrecisionChange
from deployments.channel.messages import (
    Accepted,
    Cancel,
    Changed,
    ChannelError,
    Ended,
    Events,
    Hello,
    LadderPosition,
    Leaving,
    Message,
    Order,
    Stats,
    encode_frame,
    read_frame,
)
from deployments.engines.kv_precision import KvUse
from deployments.engines.protocol import EngineReply, EngineStats, TokenUsage

ids = st.text(max_size=40)
counts = st.integers(0, 2**53)
usages = st.builds(TokenUsage, counts, counts, counts, counts, counts)
kv_uses = st.builds(KvUse, st.none() | ids, counts, counts, counts)
replies = st.builds(EngineReply, st.integers(100, 599), st.binary(max_size=200), usages, st.none() | ids, kv=kv_uses)
seconds = st.floats(0, 2**40)
stats = st.builds(
    EngineStats, counts, counts, st.floats(0, 1), counts, counts, ids, counts, counts, seconds, counts, counts, counts
)
positions = st.builds(
    LadderPosition, counts, seconds, ids, seconds, counts, st.lists(ids).map(tuple), ids, seconds, counts, ids, ids
)
changes = st.builds(
    PrecisionChange,
    *(ids, seconds, ids, ids, ids, ids, counts, counts, ids, ids, ids),
    *(seconds, counts, counts, counts, counts, st.none() | ids),
)
messages = st.one_of(
    st.builds(Hello, ids, ids, ids, ids, counts, st.lists(counts, max_size=4).map(tuple)),
    st.builds(Accepted, ids),
    st.builds(Events, ids, st.binary(max_size=500)),
    st.builds(Ended, ids, replies),
    st.builds(Stats, stats, positions, st.booleans()),
    st.builds(Order, ids, st.lists(ids).map(tuple), ids, ids, ids),
    st.builds(Changed, changes),
    st.builds(Cancel, ids),
    st.builds(Leaving, ids),
)


def read_all(data: bytes, limit: int = 1_000_000) -> list[Message]:
    async def read() -> list[Message]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        found: list[Message] = []
        try:
            while True:
                found += await read_frame(reader, limit)
        except asyncio.IncompleteReadError:
            return found

    return asyncio.run(read())


@given(st.lists(st.lists(messages, max_size=5), max_size=4))
def test_what_is_written_is_read(frames: list[list[Message]]) -> None:
    assert read_all(b"".join(map(encode_frame, frames))) == [message for frame in frames for message in frame]


@given(st.lists(messages, min_size=1, max_size=5), st.data())
def test_a_frame_cut_short_is_no_message(frame: list[Message], data: st.DataObject) -> None:
    encoded = encode_frame(frame)
    assert read_all(encoded[: data.draw(st.integers(0, len(encoded) - 1))]) == []


@given(st.binary(max_size=300))
def test_noise_is_refused_by_name(noise: bytes) -> None:
    found: list[Message] = []
    with contextlib.suppress(ChannelError):
        found = read_all(len(noise).to_bytes(4, "big") + noise)
    assert all(isinstance(message, msgspec.Struct) for message in found)


@given(st.lists(messages, min_size=1, max_size=3), st.data())
def test_a_flipped_byte_never_raises_anything_else(frame: list[Message], data: st.DataObject) -> None:
    encoded = bytearray(encode_frame(frame))
    place = data.draw(st.integers(4, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ChannelError):
        read_all(bytes(encoded))


def test_text_that_is_not_utf8_is_refused() -> None:
    payload = b"\x91\x92\x01\xa1\xff"
    with pytest.raises(ChannelError, match="does not decode"):
        read_all(len(payload).to_bytes(4, "big") + payload)


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(ChannelError, match="limit of 100"):
        read_all((101).to_bytes(4, "big"), limit=100)
