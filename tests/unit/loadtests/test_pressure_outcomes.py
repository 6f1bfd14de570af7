from __future__ import annotations

import json

import pytest

from cluster.routing.latency_class import LatencyClass
from loadtests.client import Exchange, Failure
from loadtests.pressure_outcomes import outcome_of
from loadtests.pressure_workload import Turn
from tests.unit.loadtests.pressure_made import outcome

TURN = Turn(3, 5.0, 0, 0, LatencyClass.INTERACTIVE, False, (("user", "x" * 415),), 12)
INTERACTIVE = LatencyClass.INTERACTIVE


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def text(content: str) -> bytes:
    return event({"choices": [{"delta": {"content": content}}]})


END = (
    event({"choices": [], "usage": {"prompt_tokens": 90, "completion_tokens": 2}})
    + b': pointsman {"model": "mini", "level": {"number": 3, "name": "twin", "changed": ["temperature 0.7 -> 0.3"]},'
    b' "kv": {"switches": 1, "preemptions": 2}}\n\n' + b"data: [DONE]\n\n"
)


def test_a_stream_says_at_its_end_what_it_met() -> None:
    found = outcome_of(
        TURN,
        Exchange(started=105.5, status=200, arrivals=[(106.0, text("a")), (107.0, text("b") + END)], ended=107.0),
        began=100.0,
    )
    assert (found.code, found.model, found.level, found.switches, found.preemptions) == (None, "mini", 3, 1, 2)
    assert found.changed == ("temperature 0.7 -> 0.3",)
    assert (found.prompt_tokens, found.completion_tokens, found.asked_tokens) == (90, 2, 12)
    assert found.is_shortened and found.in_target
    # It was due at 105 and sent half a second late: the caller waited for that, too.
    assert (found.ttft_s, found.total_s) == (1.0, 2.0)
    assert found.arrivals == ((6.0, 1), (7.0, 1))


@pytest.mark.parametrize(
    ("status", "body", "code", "memory"),
    [
        (503, b'{"error": {"code": "shed", "message": "m"}}', "shed", False),
        (503, b'{"error": {"code": "saturated"}}', "saturated", False),
        (503, b'{"error": {"code": "replica_lost"}}', "replica_lost", True),
        (400, b'{"error": {"code": "context_length_exceeded"}}', "context_length_exceeded", False),
        (500, b"oops", "http_500", True),
        (200, text("a") + event({"error": {"code": "timeout"}}), "timeout", False),
        (200, text("a") + event({"error": {"code": "internal_error"}}), "internal_error", True),
        (200, text("a"), "no_done", True),
    ],
)
def test_a_failure_has_the_code_that_was_told(status, body, code, memory) -> None:
    found = outcome_of(TURN, Exchange(started=105.0, status=status, arrivals=[(106.0, body)], ended=106.0), began=100.0)
    assert (found.code, found.is_memory_error, found.in_target) == (code, memory, False)
    assert found.prompt_tokens == 100


def test_a_connection_that_breaks_is_a_failure_too() -> None:
    exchange = Exchange(started=105.0, ended=195.0, failure=Failure.TIMEOUT)
    found = outcome_of(TURN, exchange, began=100.0)
    assert (found.code, found.status, found.total_s) == ("timeout", 0, 90.0)
    assert not found.in_target and not found.is_memory_error


@pytest.mark.parametrize(
    ("latency_class", "ttft_s", "total_s", "kept"),
    [
        (INTERACTIVE, 3.0, 20.0, True),
        (INTERACTIVE, 3.1, 5.0, False),
        (INTERACTIVE, None, 5.0, False),
        (INTERACTIVE, 1.0, 20.1, False),
        (LatencyClass.STANDARD, 29.0, 30.0, True),
        (LatencyClass.STANDARD, 1.0, 30.1, False),
        (LatencyClass.BATCH, 50.0, 60.0, True),
        (LatencyClass.BATCH, 1.0, 60.1, False),
    ],
)
def test_each_class_has_its_target(latency_class, ttft_s, total_s, kept) -> None:
    made = outcome(0, latency_class=latency_class, ttft_s=ttft_s, total_s=total_s)
    assert made.in_target is kept
    assert not outcome(0, code="shed", status=503).in_target
