from __future__ import annotations

import contextlib
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.api.errors import ApiError
from deployments.engines.external_events import MAX_EVENT_BYTES, EventSplitter, StreamRelay

KEY = "sk-Secret"


def chunk(text: str, **more: object) -> bytes:
    event = {"id": "1", "model": "up", "choices": [{"index": 0, "delta": {"content": text}}], **more}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(
    st.lists(st.text(alphabet=st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), min_size=1)),
    st.lists(st.integers(0, 400)),
    st.sampled_from(["\n", "\r\n"]),
)
def test_events_do_not_depend_on_how_they_are_cut(texts: list[str], cuts: list[int], end: str) -> None:
    data = "".join(f": comment{end}event: x{end}data: {text}{end}{end}" for text in texts).encode()
    splitter = EventSplitter()
    found = [event.decode() for piece in pieces(data, cuts) for event in splitter.feed(piece)]
    assert found == [text.removeprefix("\n") for text in texts]


def test_data_of_several_lines_is_one_event() -> None:
    assert EventSplitter().feed(b"data: a\ndata:b\n\n\n\n: ping\n\n") == [b"a\nb"]


def test_an_event_is_bounded_however_it_comes() -> None:
    for block in (b"x" * 1000, b"data: " + b"x" * 1000 + b"\n"):
        splitter = EventSplitter()
        fed = 0
        with contextlib.suppress(ApiError):
            while fed < 2 * MAX_EVENT_BYTES:
                splitter.feed(block)
                fed += len(block)
        assert 0.9 * MAX_EVENT_BYTES < fed < 1.1 * MAX_EVENT_BYTES


def relay(data: bytes, usage_wanted: bool = False) -> tuple[StreamRelay, bytes]:
    out: list[bytes] = []
    made = StreamRelay("ours", usage_wanted)
    made.feed(data, out.append)
    return made, b"".join(out)


def test_what_comes_after_done_is_not_handed_on() -> None:
    made, out = relay(chunk("a") + DONE + chunk("late"))
    assert made.done
    assert b"late" not in out
    made.finish()


def test_whole_events_before_a_broken_one_are_handed_on() -> None:
    out: list[bytes] = []
    made = StreamRelay("ours", usage_wanted=False)
    with pytest.raises(ApiError):
        made.feed(chunk("good") + b"data: {broken\n\n" + chunk("never"), out.append)
    assert b"good" in b"".join(out)
    assert b"never" not in b"".join(out)
    assert made.emitted


@pytest.mark.parametrize("end", [b"", b"data: [DON", b"data: {}", b"\n\n\n"])
def test_a_stream_without_its_end_is_cut_off(end: bytes) -> None:
    made, _ = relay(chunk("a") + end)
    with pytest.raises(ApiError, match="before the answer was complete"):
        made.finish()


@pytest.mark.parametrize(
    "event",
    [
        b"[]",
        b"5",
        b"null",
        b'{"choices": 5}',
        b"{}",
        b'{"error": "' + KEY.encode() + b'"}',
        b'{"error": {"code": 500, "message": "' + KEY.encode() + b'"}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"choices": [' * 50_000,
    ],
)
def test_broken_events_are_a_502_that_repeats_nothing(event: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        relay(b"data: " + event + b"\n\n")
    assert caught.value.status == 502
    assert KEY not in caught.value.message


@pytest.mark.parametrize("usage", [{"prompt_tokens": -1, "completion_tokens": "x"}, {"prompt_tokens": True}, [], "x"])
def test_nonsense_for_usage_counts_nothing(usage: object) -> None:
    made, _ = relay(chunk("a", usage=usage) + DONE)
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (0, 0)


@given(st.binary(max_size=300))
def test_noise_never_raises_anything_else(noise: bytes) -> None:
    with contextlib.suppress(ApiError):
        made, _ = relay(noise)
        made.finish()
