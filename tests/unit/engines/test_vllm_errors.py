from __future__ import annotations

import json

import pytest

from deployments.engines.vllm_errors import of_event, refusal

CANARY = "canaryword"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (
            (
                "This model's maximum context length is 1024 tokens. However, your prompt contains at least 1025 input tokens, "
                "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
            ),
            "context_length_exceeded",
        ),
        (
            (
                "This model's maximum context length is 1024 tokens. However, your prompt contains 99999 characters (more than "
                "65536 characters, which is the upper bound for 1024 input tokens). Please reduce the length of the input "
                "prompt."
            ),
            "context_length_exceeded",
        ),
        (
            "max_tokens=5000 cannot be greater than max_model_len=1024. Please request fewer output tokens.",
            "context_length_exceeded",
        ),
        ("temperature must be non-negative, got -1.0.", "invalid_value"),
        ("top_p must be in (0, 1], got 3.5.", "invalid_value"),
        ("Token id 999999999 is out of vocabulary", "invalid_value"),
    ],
)
def test_messages_of_numbers_alone_are_handed_on(message: str, code: str) -> None:
    error = refusal(400, message, "x")
    assert (error.status, error.message, error.code, error.param) == (400, message, code, "x")


def test_the_value_that_vllm_appends_is_left_out() -> None:
    error = refusal(400, f"top_p must be in (0, 1], got 3.5. (parameter=top_p, value={CANARY})", "top_p")
    assert (error.message, error.param) == ("top_p must be in (0, 1], got 3.5.", "top_p")
    assert refusal(400, "x", "input_tokens").param is None


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (f"Invalid grammar: unknown type {CANARY}", "invalid_schema"),
        (f"json schema: {CANARY}", "invalid_schema"),
        (f"{CANARY}\nTemperature must be 1, got 5.", "invalid_value"),
        (f"temperature must be {CANARY}, got {CANARY}.", "invalid_value"),
        (f'tool_choice=function "{CANARY}" requires --tool-call-parser to be set', "unsupported_value"),
        (f"1 validation error: {{'role': '{CANARY}'}}", "invalid_value"),
    ],
)
def test_everything_else_is_said_in_words_of_ours(message: str, code: str) -> None:
    error = refusal(400, message, f"messages.0.{CANARY}")
    assert error.code == code
    assert CANARY not in error.body().decode()


def test_failures_of_the_engine_say_nothing_of_their_cause() -> None:
    error = refusal(500, f"KeyError: {CANARY}", None)
    assert (error.status, error.type, error.code) == (500, "server_error", "engine_failed")
    assert CANARY not in error.message


def test_errors_inside_a_stream() -> None:
    event = {"error": {"message": "top_p must be in (0, 1], got 3.5.", "code": 400, "param": "top_p", "type": "x"}}
    assert of_event(f"data: {json.dumps(event)}\n\n").param == "top_p"
    for broken in ("data: {", 'data: {"error": 5}', 'data: {"error": {"code": "x", "message": 1}}', "data: []"):
        assert of_event(broken).status == 500
