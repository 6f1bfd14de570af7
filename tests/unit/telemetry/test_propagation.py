from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider

from cluster.telemetry import names
from deployments.telemetry.propagation import context_from, incoming_context, outgoing_headers

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01".encode()

tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")


def begin(headers, *, trusted):
    incoming = incoming_context(headers, trusted=trusted)
    return tracer.start_span("request", context=incoming.context, links=incoming.links)


def test_an_authenticated_callers_trace_is_continued():
    span = begin([(b"traceparent", GOOD), (b"tracestate", b"a=1,b=2")], trusted=True)
    assert f"{span.get_span_context().trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == SPAN
    assert outgoing_headers(span)["tracestate"] == "a=1,b=2"
    assert not span.links


def test_anybody_else_gets_a_trace_of_their_own_with_a_link():
    span = begin([(b"traceparent", GOOD), (b"tracestate", b"a=1")], trusted=False)
    assert f"{span.get_span_context().trace_id:032x}" != TRACE
    assert span.parent is None
    (link,) = span.links
    assert f"{link.context.trace_id:032x}" == TRACE
    assert not link.context.trace_state
    assert link.attributes == {names.LINK_REASON: names.LINK_UNAUTHENTICATED}
    assert "tracestate" not in outgoing_headers(span)


def test_a_stranger_cannot_switch_the_recording_off():
    span = begin([(b"traceparent", GOOD[:-1] + b"0")], trusted=False)
    assert span.is_recording()


def test_a_trusted_caller_can():
    span = begin([(b"traceparent", GOOD[:-1] + b"0")], trusted=True)
    assert not span.is_recording()


@pytest.mark.parametrize(
    "values",
    [
        [],
        [GOOD, GOOD],
        [b""],
        [b"00-" + b"0" * 32 + b"-" + SPAN.encode() + b"-01"],
        [b"00-" + TRACE.encode() + b"-" + b"0" * 16 + b"-01"],
        [b"ff" + GOOD[2:]],
        [GOOD + b"-more"],
        [GOOD.upper()],
        [GOOD + b"\xff"],
        [b"x" * 100_000],
        [GOOD + b" " * 600],
        [b"01" + GOOD[2:] + b"-" + b"x" * 200],
    ],
)
@pytest.mark.parametrize("trusted", [True, False])
def test_missing_malformed_and_repeated_headers_are_ignored(values, trusted):
    incoming = incoming_context([(b"traceparent", value) for value in values], trusted=trusted)
    assert incoming.context == Context()
    assert incoming.links == ()


def test_a_later_version_is_read_by_what_it_shares_with_ours():
    span = begin([(b"traceparent", b"cc" + GOOD[2:] + b"-what-comes")], trusted=True)
    assert f"{span.get_span_context().trace_id:032x}" == TRACE


@pytest.mark.parametrize(
    "states",
    [
        [b"a=" + b"x" * 600],
        [b",".join(b"k%d=1" % number for number in range(33))],
        [b"no member"],
        [b"a=1,a=2"],
        [b"a=1\r\nx: y"],
        [b"a=\xe2\x82\xac"],
        [b"a=1"] * 200,
    ],
)
def test_a_tracestate_out_of_bounds_is_left_out_alone(states, caplog):
    span = begin([(b"traceparent", GOOD), *((b"tracestate", state) for state in states)], trusted=True)
    assert f"{span.get_span_context().trace_id:032x}" == TRACE
    assert set(outgoing_headers(span)) == {"traceparent"}
    assert not caplog.records


def test_several_tracestate_headers_are_one_list():
    span = begin([(b"traceparent", GOOD), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")], trusted=True)
    assert outgoing_headers(span)["tracestate"] == "a=1,b=2"


def test_baggage_goes_nowhere():
    incoming = incoming_context([(b"traceparent", GOOD), (b"baggage", b"user=canary," * 1000)], trusted=True)
    assert baggage.get_all(incoming.context) == {}
    span = tracer.start_span("request", context=incoming.context)
    with trace.use_span(span):
        assert set(outgoing_headers(span)) == {"traceparent"}


def test_a_span_that_happens_to_be_current_is_no_parent():
    with tracer.start_as_current_span("unrelated") as unrelated:
        span = begin([], trusted=True)
    assert span.parent is None
    assert span.get_span_context().trace_id != unrelated.get_span_context().trace_id


def test_what_goes_out_comes_in_at_the_replica():
    span = begin([(b"traceparent", GOOD), (b"tracestate", b"a=1")], trusted=True)
    child = tracer.start_span("replica", context=context_from(outgoing_headers(span)))
    assert child.parent.span_id == span.get_span_context().span_id
    assert child.get_span_context().trace_state == {"a": "1"}


def test_no_valid_span_gives_no_headers():
    assert outgoing_headers(trace.INVALID_SPAN) == {}
    assert context_from({}) == Context()
    assert context_from({"traceparent": "rubbish"}) == Context()


header_names = st.sampled_from([b"traceparent", b"tracestate", b"baggage", b"x"])
near_parents = st.from_regex(rb"\A[0-9a-fg]{0,3}-[0-9a-f]{30,33}-[0-9a-f]{15,17}-[0-9a-f]{1,3}.{0,3}\Z")
near_states = st.from_regex(rb"\A([a-z0-9@*/=, -]{0,20},?){0,40}\Z")


@settings(deadline=None, max_examples=60)
@given(
    headers=st.lists(st.tuples(header_names, st.binary(max_size=700) | near_parents | near_states | st.just(GOOD))),
    trusted=st.booleans(),
)
def test_no_header_makes_it_raise_or_carry_more_than_its_bounds(headers, trusted):
    span = begin(headers, trusted=trusted)
    out = outgoing_headers(span)
    assert set(out) <= {"traceparent", "tracestate"}
    assert len(out["traceparent"]) == 55
    assert len(out.get("tracestate", "")) <= 600
    assert out.get("tracestate", "").isascii()
    assert "\n" not in out.get("tracestate", "")
    if not trusted:
        assert span.parent is None
        assert "tracestate" not in out
    assert context_from(out) != Context()
