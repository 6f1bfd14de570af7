from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from cluster.telemetry import names
from deployments.telemetry.render import duration, list_to_json, render_trace, render_trace_list, to_json
from deployments.telemetry.spans import SpanEvent, SpanLink, TraceSummary

START = 1_800_000_000_000_000_000


def draw(spans, *, width=100, colour=False, encoding="utf-8", **more) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=width, force_terminal=colour, color_system="standard" if colour else None)
    console.print(render_trace(spans, **more))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.fixture
def request_trace(make_span):
    return (
        make_span(
            1,
            start_ms=0,
            duration_ms=1240,
            name="chat",
            kind="server",
            attributes={names.REQUEST_MODEL: "auto", names.RESPONSE_MODEL: "dense", names.TTFT: 0.312},
        ),
        make_span(2, 1, start_ms=1, duration_ms=0.3, name="route", attributes={names.ROUTE_REASON: "looks like code"}),
        make_span(
            3,
            1,
            start_ms=2,
            duration_ms=1200,
            name="replica",
            kind="server",
            process="replica:dense",
            instance="instance-2",
            attributes={names.USAGE_OUTPUT_TOKENS: 8},
        ),
        make_span(
            4,
            3,
            start_ms=3,
            duration_ms=1190,
            name="llm_request",
            process="replica:dense",
            instance="instance-2",
            attributes={names.ENGINE_TTFT: 0.3, names.ENGINE_OUTPUT_TOKENS: 8},
        ),
    )


def test_a_request_is_drawn_as_a_tree(request_trace):
    assert draw(request_trace) == (
        "trace 00000000000000000000000000000001  2027-01-15 08:00:00 UTC  1.24 s  4 spans, 2 processes\n"
        "chat  ingress                                                        1.24 s ████████████████████████\n"
        "  asked=auto  model=dense  ttft=312 ms\n"
        "├─ route  ingress                                                    300 us ▏\n"
        "│    reason=looks like code\n"
        "└─ replica  replica:dense                                            1.20 s ███████████████████████\n"
        "     out=8\n"
        "   └─ llm_request  replica:dense                                     1.19 s ███████████████████████\n"
        "        out=8  ttft=300 ms\n"
    )


def test_without_unicode_it_is_ascii(request_trace):
    text = draw(request_trace, encoding="ascii")
    assert "`- replica" in text
    assert "#####" in text


def test_piped_output_has_no_escape_codes_and_a_terminal_has(request_trace):
    assert "\x1b" not in draw(request_trace)
    assert "\x1b" in draw(request_trace, colour=True)


@pytest.mark.parametrize("width", [20, 40, 79, 80, 200])
def test_no_line_is_wider_than_the_console(request_trace, width):
    assert max(map(len, draw(request_trace, width=width).splitlines())) <= width


def test_a_failure_is_red_and_says_what(make_span):
    span = make_span(
        1,
        status="error",
        status_message="EngineDeadError",
        events=(SpanEvent("exception", START + 5_000_000, {"exception.type": "EngineDeadError"}),),
    )
    assert "✗ EngineDeadError" in draw([span])
    assert "• exception +5.00 ms  exception.type=EngineDeadError" in draw([span])
    assert "\x1b[31m" in draw([span], colour=True)
    assert "1 failed" in draw([span])


def test_links_missing_parents_and_several_roots_are_told(make_span):
    text = draw(
        [
            make_span(
                1, 77, kind="server", links=(SpanLink("a" * 32, "b" * 16, {names.LINK_REASON: "unauthenticated"}),)
            ),
            make_span(2, 88, start_ms=5),
            make_span(3, start_ms=6),
        ]
    )
    assert f"continues the caller's span {77:016x}" in text
    assert f"its parent {88:016x} is not in the store" in text
    assert f"linked to trace {'a' * 32}, span {'b' * 16} (unauthenticated)" in text
    assert sum(line.startswith("span-") for line in text.splitlines()) == 3


def test_differing_clocks_are_named_and_do_not_break_the_bars(make_span):
    text = draw([make_span(1, start_ms=100), make_span(2, 1, start_ms=20, instance="other", duration_ms=-50)])
    assert "begins 80.0 ms before its parent: the clocks of their machines differ" in text


def test_spans_that_are_each_others_parents_are_all_shown(make_span):
    text = draw(
        [make_span(1, 2), make_span(2, 3, start_ms=1), make_span(3, 1, start_ms=2), make_span(4, 4, start_ms=3)]
    )
    for number in range(1, 5):
        assert text.count(f"span-{number} ") == 1


@pytest.mark.parametrize("shape", ["star", "chain", "roots", "bushes"])
def test_ten_thousand_spans_make_a_bounded_drawing(make_span, shape):
    parent = {
        "star": lambda number: 0 if number else None,
        "chain": lambda number: number - 1 if number else None,
        "roots": lambda _: None,
        "bushes": lambda number: (number - 1) // 3 if number else None,
    }[shape]
    spans = [make_span(number, parent(number), start_ms=number) for number in range(9_999)]
    spans.append(make_span(10_000, 0, start_ms=10_000, status="error", name="needle"))
    lines = draw(spans, max_lines=100).splitlines()
    assert len(lines) <= 260
    assert any("more spans" in line for line in lines) or shape == "chain"
    if shape == "star":
        assert any("needle" in line for line in lines)


def test_nothing_in_a_span_steers_the_terminal(make_span):
    evil = "\x1b]0;owned\x07[bold red]x[/]\r\n\u202e"
    span = make_span(
        1, name=evil, status="error", status_message=evil, process=evil, attributes={evil: evil, "model": evil}
    )
    text = draw([span], all_attributes=True)
    assert not set(text) & set("\x1b\x07\r\u202e")
    assert "[bold red]x[/]" in text


def test_all_attributes_are_shown_when_asked(make_span):
    span = make_span(1, attributes={"odd.one": 1.23456, "list": ("a", "b")})
    assert "odd.one" not in draw([span])
    many = {f"attribute.number.{number:02}": "x" * 30 for number in range(20)}
    lines = [
        line.strip()
        for line in draw([make_span(1, attributes={**span.attributes, **many})], all_attributes=True).splitlines()
    ]
    assert {"list=a,b", "odd.one=1.235"} <= set(lines)
    # However many there are, and however narrow the terminal.
    assert {f"{key}={value}" for key, value in many.items()} <= set(lines)


def test_no_spans_is_an_error():
    with pytest.raises(ValueError, match="no tree"):
        render_trace([])


def test_json_has_every_span_in_order(request_trace):
    told = json.loads(to_json(tuple(reversed(request_trace))))
    assert told["trace_id"] == f"{1:032x}"
    assert [span["name"] for span in told["spans"]] == ["chat", "route", "replica", "llm_request"]
    assert json.loads(to_json(())) == {"trace_id": None, "spans": []}


def test_a_request_that_was_refused_is_not_called_ok(make_span):
    root = make_span(1, name="chat", attributes={names.HTTP_STATUS: 404})
    console = Console(file=io.StringIO(), width=140, color_system=None)
    console.print(render_trace_list([TraceSummary(f"{1:032x}", START, START + 1, 1, 0, root)]))
    assert console.file.getvalue().splitlines()[1].endswith("refused (404)")  # type: ignore[attr-defined]


def test_recent_traces_are_a_table(request_trace, make_span):
    traces = [
        TraceSummary(f"{1:032x}", START, START + 1_240_000_000, 4, 0, request_trace[0]),
        TraceSummary(f"{2:032x}", START, START + 5_000, 1, 1, None),
    ]
    console = Console(file=io.StringIO(), width=140, color_system=None)
    console.print(render_trace_list(traces))
    header, first, second = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert header.split() == ["trace", "when", "(UTC)", "request", "model", "duration", "spans", "outcome"]
    assert first.split()[3:] == ["chat", "dense", "1.24", "s", "4", "ok"]
    assert second.split()[-5:] == ["5.00", "us", "1", "1", "failed"]
    assert json.loads(list_to_json(traces))[0]["spans"] == 4


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_500, "1.50 us"),
        (12_340_000, "12.3 ms"),
        (999_990_000, "1000 ms"),
        (61_000_000_000, "61.0 s"),
    ],
)
def test_durations_read_well(nanoseconds, text):
    assert duration(nanoseconds) == text


def test_the_experts_of_a_request_stand_on_its_span(make_span):
    top = ("layer 1 expert 3 0.61", "layer 0 expert 2 0.50")
    experts = {names.EXPERT_TOKENS: 30, names.EXPERT_DISTINCT: 12, names.EXPERT_TOP: top}
    drawn = draw((make_span(1, name="replica", attributes={**experts, names.USAGE_OUTPUT_TOKENS: 8}),), width=120)
    most = "layer 1 expert 3 0.61, layer 0 expert 2 0.50"
    assert f"experts: 12 in all layers used by 30 tokens, most: {most}\n" in drawn
    assert "experts" not in draw((make_span(1, name="replica", attributes={names.USAGE_OUTPUT_TOKENS: 8}),))


def test_pools_of_experts_stand_below_the_replica_that_they_computed_for(make_span):
    replica = {
        names.USAGE_OUTPUT_TOKENS: 8,
        names.POOLS_WAIT: 0.25,
        names.POOLS_STEPS: 9,
        names.POOLS_RESENT_ROWS: 2,
        names.POOLS_DEGRADED_ROWS: 3,
    }
    event = SpanEvent(names.EVENT_EXPERTS_DEGRADED, START + 900_000_000, {names.POOLS_DEGRADED_ROWS: 3})
    pool = {names.POOL: "hot-0", names.POOL_PAIRS: 960, names.POOL_REPLICAS: ("hot-0-a", "hot-0-b")}
    spans = (
        make_span(1, name="replica", duration_ms=1000, attributes=replica, events=(event,)),
        make_span(2, 1, name=names.SPAN_POOL, start_ms=100, duration_ms=800, attributes=pool),
    )
    assert draw(spans) == (
        "trace 00000000000000000000000000000001  2027-01-15 08:00:00 UTC  1.00 s  2 spans, 1 process\n"
        "replica  ingress                                                     1.00 s ████████████████████████\n"
        "  pools_wait=250 ms  out=8\n"
        "  • experts_degraded +900 ms  pointsman.pools.degraded_rows=3\n"
        "└─ experts.pool  ingress                                             800 ms   ███████████████████\n"
        "     pool=hot-0  pairs=960  replicas=hot-0-a,hot-0-b\n"
    )
