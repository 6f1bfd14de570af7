from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.http1 import MalformedResponseError, ResponseParser, encode_request

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n6;x=y\r\n: more\r\n0\r\nt: 1\r\n\r\n"


@given(st.lists(st.integers(1, len(CHUNKED)), max_size=20))
def test_any_split_of_a_chunked_response_gives_the_same_body(cuts: list[int]) -> None:
    parser = ResponseParser()
    body = b""
    edges = [0, *sorted(cuts), len(CHUNKED)]
    for start, end in itertools.pairwise(edges):
        body += parser.feed(CHUNKED[start:end])
    assert body == b"data: more"
    assert parser.complete
    assert parser.reusable
    assert parser.status == 200


def test_length_close_and_empty_bodies() -> None:
    counted = ResponseParser()
    assert counted.feed(b"HTTP/1.1 400 Bad\r\ncontent-length: 3\r\n\r\nabc") == b"abc"
    assert counted.complete
    until_close = ResponseParser()
    assert until_close.feed(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc") == b"abc"
    assert not until_close.complete
    until_close.end_of_stream()
    assert until_close.complete
    assert not until_close.reusable
    empty = ResponseParser()
    assert empty.feed(b"HTTP/1.1 204 No Content\r\n\r\n") == b""
    assert empty.complete


def test_interim_responses_are_passed_over() -> None:
    parser = ResponseParser()
    assert parser.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx") == b"x"
    assert parser.status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedResponseError):
        ResponseParser().feed(data)


def test_requests_cannot_be_split() -> None:
    assert (
        encode_request("GET", "/metrics", "h:1", (("a", "b"),)) == b"GET /metrics HTTP/1.1\r\nhost: h:1\r\na: b\r\n\r\n"
    )
    with pytest.raises(ValueError, match="line break"):
        encode_request("GET", "/", "h:1", (("authorization", "x\r\ny: z"),))
