import copy
import json
import time
from typing import Any

import pytest

from cluster.api.chat import ChatRequest, parse_chat
from cluster.api.errors import ApiError
from cluster.api.json_body import JsonObject
from cluster.config.ingress import LimitsConfig

LIMITS = LimitsConfig()
CANARY = "canary-5d1e"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def body(**changes: object) -> JsonObject:
    made: dict[str, Any] = {
        "model": "auto",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    return made | changes


def read(**changes: object) -> ChatRequest:
    return parse_chat(body(**changes), LIMITS)


def refusal(parsed: JsonObject) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_chat(parsed, LIMITS)
    assert caught.value.status == 400
    assert CANARY not in caught.value.body().decode()
    return caught.value


def test_a_plain_request() -> None:
    request = read()
    assert (request.model, request.stream, request.n, request.max_tokens) == ("auto", False, 1, None)
    assert request.text == "What is the capital of France?"
    assert request.prompt_bytes == 30
    assert request.prompt_tokens_estimate == 12
    assert request.body == {
        "stream": False,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    assert "capital" not in repr(request)


def test_everything_that_openai_clients_send_is_taken() -> None:
    request = read(
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        max_completion_tokens=9,
        n=2,
        stop=["a", "b"],
        seed=-5,
        temperature=0.5,
        top_p=1,
        frequency_penalty=-2,
        presence_penalty=2,
        logit_bias={"17": -100, "0": 1.5},
        logprobs=True,
        top_logprobs=20,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True},
        },
        metadata={"a": "b"},
        store=False,
        modalities=["text"],
        service_tier="auto",
        user="someone",
        audio=None,
    )
    assert (request.stream, request.include_usage, request.max_tokens, request.n) == (True, True, 9, 2)
    assert (request.tools, request.tool_choice, request.response_format, request.logprobs) == (
        True,
        "named",
        True,
        True,
    )
    assert request.body["max_completion_tokens"] == 9
    assert request.body["stream_options"] == {"include_usage": True}
    assert not {"model", "user", "metadata", "store", "audio", "service_tier"} & request.body.keys()


def test_messages_are_cleaned() -> None:
    request = read(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "ü"}], "name": "me"},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "annotations": []},
            {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
            {"role": "assistant", "content": "Sunny.", "reasoning_content": "hm"},
        ]
    )
    assert request.body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "me", "content": "a\nü"},
        {"role": "assistant", "tool_calls": [CALL], "content": None},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
    ]
    assert request.prompt_bytes == len("Be brief.") + len("a\nü".encode()) + len("weather{}") + len("sunnySunny.")


REFUSED: list[tuple[str, object]] = [
    ("n", 0), ("n", 9), ("n", 10**18), ("n", True), ("n", 1.5), ("n", "1"),
    ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**60), ("max_completion_tokens", 0),
    ("temperature", -0.1), ("temperature", 2.1), ("temperature", "0"), ("temperature", False),
    ("top_p", 0), ("top_p", 1.01), ("min_p", -1), ("top_k", -2), ("repetition_penalty", 0),
    ("frequency_penalty", 2.5), ("presence_penalty", -2.5), ("seed", 2**63), ("seed", 0.5),
    ("stop", [""]), ("stop", ""), ("stop", ["a"] * 5), ("stop", [1]), ("stop", {"a": 1}), ("stop", "x" * 257),
    ("logit_bias", {"-1": 0}), ("logit_bias", {"x": 0}), ("logit_bias", {"01": 0}), ("logit_bias", {"99999999": 0}),
    ("logit_bias", {"1": 101}), ("logit_bias", {"1": float("nan")}), ("logit_bias", {"1": None}), ("logit_bias", []),
    ("logit_bias", {str(i): 0 for i in range(301)}), ("logit_bias", {"٣": 0}),
    ("logprobs", 1), ("top_logprobs", 5), ("top_logprobs", 21), ("stream", "true"),
    ("stream_options", {"include_usage": True}), ("min_tokens", -1), ("ignore_eos", 1), ("user", 5), ("user", "x" * 513),
    ("store", True), ("modalities", ["audio"]), ("service_tier", "flex"), ("metadata", {"a": 1}), ("metadata", {str(i): "" for i in range(17)}),
    ("model", None), ("model", ""), ("model", 5), ("model", "x" * 257), ("messages", None), ("messages", []), ("messages", {}),
    ("messages", [{"role": "user", "content": "x"}] * 1025),
    ("messages", [{"role": "user", "content": "x" * 524_289}]),
    ("tool_choice", "auto"), ("tool_choice", {"type": "function", "function": {"name": "weather"}}),
    ("tools", [TOOL] * 65), ("response_format", "json"),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://x"}}}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_values_past_a_bound_name_the_field(field: str, value: object) -> None:
    error = refusal(body(**{field: value}))
    assert error.param is not None
    assert error.param.startswith((field, "max_tokens")) or field in error.message


FORBIDDEN = [
    "chat_template",
    "chat_template_kwargs",
    "prompt_embeds",
    "image_url",
    "audio",
    "file",
    "api_base",
    "api_key",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "cache_salt",
    "priority",
    "kv_transfer_params",
    "add_generation_prompt",
    "continue_final_message",
    "echo",
    "documents",
    "mm_processor_kwargs",
    "prompt_logprobs",
    "bad_words",
    "allowed_token_ids",
    "logits_processors",
    "vllm_xargs",
    "request_id",
    "return_token_ids",
    "truncate_prompt_tokens",
    "skip_special_tokens",
    "functions",
    "function_call",
    "best_of",
    "suffix",
    "reasoning_effort",
]


@pytest.mark.parametrize("field", FORBIDDEN)
def test_fields_that_reach_past_the_bounds_are_refused_by_name(field: str) -> None:
    error = refusal(body(**{field: CANARY}))
    assert (error.code, error.param) == ("unsupported_parameter", field)


def test_an_unknown_field_is_refused_without_repeating_it() -> None:
    assert "did you mean `temperature`?" in refusal(body(temprature=1)).message
    assert "The 3rd field" in refusal(body(**{CANARY: 1})).message


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "audio_url", "image_embeds"])
def test_content_that_is_no_text_is_refused_by_type(kind: str) -> None:
    part = {"type": kind, kind: {"url": f"http://169.254.169.254/{CANARY}"}}
    error = refusal(body(messages=[{"role": "user", "content": [part]}]))
    assert error.param == "messages.0.content.0.type"
    assert kind in error.message


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (CANARY, "messages.0"),
        ({}, "messages.0.role"),
        ({"role": CANARY, "content": "x"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": 5}, "messages.0.content"),
        ({"role": "user", "content": []}, "messages.0.content"),
        ({"role": "user", "content": [{"type": CANARY}]}, "messages.0.content.0.type"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": [{"type": "text", "text": "", CANARY: 1}]}, "messages.0.content.0"),
        ({"role": "user", "content": "x", "name": f"{CANARY}\n"}, "messages.0.name"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages.0.tool_calls"),
        ({"role": "user", "content": "x", "tool_call_id": CANARY}, "messages.0.tool_call_id"),
        ({"role": "user", "content": "x", CANARY: 1}, "messages.0"),
        ({"role": "tool", "content": "x"}, "messages.0.tool_call_id"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": CANARY}]}, "messages.0.tool_calls.0.function"),
        ({"role": "assistant", "content": None, "audio": {"id": CANARY}}, "messages.0.audio"),
    ],
)
def test_messages_past_a_bound_name_the_place(message: object, param: str) -> None:
    assert refusal(body(messages=[message])).param == param


@pytest.mark.parametrize("arguments", [CANARY, "[1]", '{"a": NaN}', "[" * 5000, '{"a":' * 40 + "1" + "}" * 40])
def test_arguments_of_calls_are_json_within_bounds(arguments: str) -> None:
    call = copy.deepcopy(CALL)
    call["function"]["arguments"] = arguments  # type: ignore[index]
    error = refusal(body(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}]))
    assert error.param == "messages.0.tool_calls.0.function.arguments"


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "web_search"}, "tools.0.type"),
        ({"type": "function"}, "tools.0.function"),
        ({"type": "function", "function": {}}, "tools.0.function.name"),
        ({"type": "function", "function": {"name": f"{CANARY} "}}, "tools.0.function.name"),
        ({"type": "function", "function": {"name": "x", "parameters": []}}, "tools.0.function.parameters"),
        ({"type": "function", "function": {"name": "x", CANARY: []}}, "tools.0.function"),
        ({"type": "function", "function": {"name": "x", "description": "x" * 8193}}, "tools.0.function.description"),
    ],
)
def test_tools_past_a_bound_name_the_place(tool: object, param: str) -> None:
    assert refusal(body(tools=[tool])).param == param


def test_tools_have_different_names_and_a_choice_names_one() -> None:
    assert refusal(body(tools=[TOOL, TOOL])).param == "tools"
    other = {"type": "function", "function": {"name": CANARY}}
    assert refusal(body(tools=[TOOL], tool_choice=other)).param == "tool_choice.function.name"
    assert refusal(body(tools=[TOOL], tool_choice=CANARY)).param == "tool_choice"
    assert read(tools=[TOOL]).tool_choice == "auto"
    assert read(tools=[TOOL], tool_choice="required").tool_choice == "required"


DEEP: dict[str, Any] = {"type": "object"}
for _ in range(12):
    DEEP = {"type": "object", "properties": {"a": DEEP}}


@pytest.mark.parametrize(
    "schema",
    [
        DEEP,
        {"type": "string", "description": "x" * 65_536},
        {"type": "string", "maxLength": 10**9},
        {"type": "array", "items": {"minItems": -1}},
        {"$ref": "file:///etc/passwd"},
        {"anyOf": [{"$dynamicRef": "https://example.com"}]},
        {"enum": list(range(1001))},
        {"type": "string", "pattern": "a" * 513},
        {"type": "string", "pattern": "(a{1000}){1000}"},
        {"patternProperties": {"a{9999999}": {}}},
        {"type": "string", "pattern": "a{0,257}"},
        {"type": "string", "pattern": "a{ 257 }"},
        {"type": "string", "pattern": "a{00300,}"},
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"properties": {"a": {"$ref": "#/$defs/nowhere"}}},
        {"anyOf": [{"type": "string"}, {"$ref": "#/anyOf/2"}]},
        {"type": "array", "minItems": 3},
        {"type": "array", "minItems": 2, "prefixItems": [{"type": "string"}], "items": False},
        {"type": "object", "minProperties": 2, "properties": {"a": {}}},
        [1],
        "x",
        None,
    ],
    ids=range(23),
)
def test_schemas_that_are_costly_or_point_out_are_refused(schema: object) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    error = refusal(body(response_format=form))
    assert error.param == "response_format.json_schema.schema"
    assert len(json.dumps(error.message)) < 300


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "a{0,256}b{1,2}x{"},
        {"type": "string", "pattern": "[0-9]{256}"},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"$ref": "#/$defs/a%20b", "$defs": {"a b": {"items": {"$ref": "#/$defs/a%20b"}}}},
        {"anyOf": [{"type": "string"}, {"$ref": "#/anyOf/0"}]},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "string"}}},
        {"type": "array", "minItems": 3, "items": {}},
        {"type": "array", "minItems": 1, "prefixItems": [{"type": "string"}]},
        {"type": "object", "minProperties": 1, "properties": {"a": {}}},
        {"type": "object", "minProperties": 2, "additionalProperties": {"type": "string"}},
    ],
    ids=range(10),
)
def test_schemas_that_make_sense_are_taken(schema: object) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert read(response_format=form).body["response_format"] == form


def test_a_long_chain_of_references_is_followed_once() -> None:
    chain: dict[str, Any] = {f"a{at}": {"$ref": f"#/$defs/a{at + 1}"} for at in range(1500)}
    schema = {"$ref": "#/$defs/a0", "$defs": {**chain, "a1500": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    began = time.thread_time()
    assert read(response_format=form).response_format
    assert time.thread_time() - began < 0.1


def test_the_two_names_of_the_token_limit_must_agree() -> None:
    assert read(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert "differ" in refusal(body(max_tokens=5, max_completion_tokens=6)).message
    assert refusal(body(max_tokens=5, min_tokens=6)).param == "min_tokens"
