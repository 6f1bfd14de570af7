"""What was said is on spans once the operator asks for it, and nothing more than that."""

from __future__ import annotations

import json

import pytest

from cluster.config.operations import TelemetryConfig
from cluster.telemetry import names
from deployments.paths import traces_path
from deployments.telemetry.content import CAPTURE, MAX_CHARS, OutputRecorder, captures_content, input_messages
from deployments.telemetry.otlp import TelemetryConfigError
from deployments.telemetry.reader import TraceReader
from deployments.telemetry.setup import check_telemetry, setup_telemetry

SAID = "SAID7f3a"


def event(**choice: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("value", "asked"),
    [(None, False), ("", False), ("NO_CONTENT", False), ("false", False), ("true", True), ("SPAN_ONLY", True)],
)
def test_the_standard_variable_asks_for_content(value, asked):
    assert captures_content({} if value is None else {CAPTURE: value}) is asked


@pytest.mark.parametrize("value", ["yes", "EVENT_ONLY"])
def test_a_value_that_cannot_be_followed_is_refused(value, state_dir):
    with pytest.raises(TelemetryConfigError, match=CAPTURE):
        check_telemetry(TelemetryConfig(), {CAPTURE: value})
    with pytest.raises(TelemetryConfigError, match=CAPTURE):
        setup_telemetry("ingress", TelemetryConfig(), state_dir, environ={CAPTURE: value}, set_global=False)


@pytest.mark.parametrize(("environ", "kept"), [({}, False), ({CAPTURE: "span_only"}, True)])
def test_messages_are_stored_only_if_asked_for_and_other_content_never(state_dir, environ, kept):
    telemetry = setup_telemetry("ingress", TelemetryConfig(), state_dir, environ=environ, set_global=False)
    assert telemetry.captures_content is kept
    said = input_messages({"messages": [{"role": "user", "content": f"{SAID} " * 1000}]})
    attributes = {
        names.INPUT_MESSAGES: said,
        "gen_ai.prompt": "OTHER",
        "gen_ai.prompt.0.content": "OTHER",
        "exception.message": "OTHER",
        names.REQUEST_MODEL: "dense",
    }
    telemetry.tracer.start_span("chat", attributes=attributes).end()
    assert telemetry.close()
    with TraceReader(traces_path(state_dir)) as reader:
        (span,) = reader.get_trace(reader.list_traces()[0].trace_id)
    assert span.attributes == {names.REQUEST_MODEL: "dense"} | ({names.INPUT_MESSAGES: said} if kept else {})


def test_a_chat_is_written_as_the_conventions_say():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ]
    }
    assert json.loads(input_messages(body) or "") == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "Hello"}, {"type": "text", "content": "there"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "f", "arguments": '{"a": 1}'}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "42"}]},
    ]
    assert json.loads(input_messages({"prompt": "Once"}) or "")[0]["parts"][0]["content"] == "Once"
    assert input_messages({"input": ["to embed"]}) is None
    assert input_messages({"prompt": [1, 2, 3]}) is None


@pytest.mark.parametrize("turns", [1, 50, 5000])
@pytest.mark.parametrize("text", ["x" * 100_000, '"\\' * 50_000, "\x00" * 100_000])
def test_however_long_it_is_valid_json_and_the_newest_stays(turns, text):
    body = {
        "messages": [{"role": "user", "content": f"{number} {text[: 400_000 // turns]}"} for number in range(turns)]
    }
    written = input_messages(body) or ""
    assert len(written) <= MAX_CHARS
    messages = json.loads(written)
    assert messages[-1]["parts"][0]["content"].startswith(f"{turns - 1} ")
    assert "characters left out]" in written or "older messages left out]" in written


@pytest.mark.parametrize(
    "pieces",
    [
        [
            event(delta={"role": "assistant", "content": ""}),
            event(delta={"content": "Pa"}) + event(delta={"content": "ris"}),
            event(delta={}, finish_reason="stop"),
            b'data: {"choices": [], "usage": {}}\n\n',
        ],
        [json.dumps({"choices": [{"index": 0, "message": {"content": "Paris"}, "finish_reason": "stop"}]}).encode()],
        [json.dumps({"choices": [{"index": 0, "text": "Paris", "finish_reason": "stop"}]}).encode()],
    ],
    ids=["stream", "whole", "completion"],
)
def test_an_answer_is_gathered_from_what_goes_to_the_client(pieces):
    recorder = OutputRecorder()
    for piece in pieces:
        recorder.add(piece)
    assert json.loads(recorder.messages() or "") == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Paris"}], "finish_reason": "stop"}
    ]


def test_an_answer_is_bounded_and_one_that_broke_off_says_so():
    recorder = OutputRecorder()
    assert recorder.messages() is None
    for piece in (b"data: {", b"{}", b'{"choices": 3}', b": a comment\n\n", b'data: {"choices": [{"index": 99}]}\n\n'):
        recorder.add(piece)
    assert recorder.messages() is None
    for _ in range(1000):
        recorder.add(event(delta={"content": "word " * 100}))
    written = recorder.messages() or ""
    assert len(written) <= MAX_CHARS
    (message,) = json.loads(written)
    assert message["finish_reason"] == "error"
    assert "characters left out]" in message["parts"][-1]["content"]
