"""The chat template is the original one wherever no tools are involved, and renders tools in the Hermes form."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import jinja2.sandbox
import pytest

from deployments.models.template import ORIGINAL, chat_template

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_SYSTEM = {"role": "system", "content": "Be brief."}
_USER = {"role": "user", "content": "Hi"}
_REPLY = {"role": "assistant", "content": " Hello {{ there }} \n"}


def _render(template: str, messages: list[dict[str, Any]], **more: Any) -> str:
    # As transformers renders: blocks are trimmed, and tojson keeps the letters of any language.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(template).render(messages=messages, **more)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, []])
@pytest.mark.parametrize(
    "messages",
    [
        [_USER],
        [_SYSTEM, _USER],
        [_USER, _REPLY, _USER],
        [_SYSTEM, _USER, _REPLY, {"role": "system", "content": "Now in French."}, _USER],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "<|im_end|> <tools> \u00e9\n\n"}, {"role": "assistant", "content": "\n"}],
        [{**_REPLY, "tool_calls": []}],
        [{**_REPLY, "tool_calls": None}],
        [],
    ],
)
def test_without_tools_it_renders_what_the_original_does(
    messages: list[dict[str, Any]], tools: list[Any] | None, add_generation_prompt: bool
) -> None:
    more = {"tools": tools, "add_generation_prompt": add_generation_prompt}
    assert _render(chat_template(), messages, **more) == _render(ORIGINAL, messages, **more)


def test_tools_are_listed_in_the_system_turn() -> None:
    for messages in ([_USER], [_SYSTEM, _USER]):
        rendered = _render(chat_template(), messages, tools=[_WEATHER], add_generation_prompt=True)
        system = rendered.split("<|im_end|>")[0]
        listed = system.split("<tools>\n")[1].split("\n</tools>")[0]
        assert json.loads(listed) == _WEATHER
        assert rendered.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
        assert rendered.count("<|im_start|>system") == 1
    assert system.startswith("<|im_start|>system\nBe brief.")


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', {"city": "Oslo"}])
def test_a_call_and_its_result_are_rendered(arguments: object) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        _USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": '{"celsius": 4}'},
    ]
    rendered = _render(chat_template(), messages, tools=[_WEATHER], add_generation_prompt=True)
    assert rendered.endswith(
        "<|im_start|>assistant\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n'
        '<|im_start|>user\n<tool_response>\n{"celsius": 4}\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\n"
    )


def test_results_of_parallel_calls_share_one_turn() -> None:
    calls = [{"function": {"name": name, "arguments": ""}} for name in ("a", "b")]
    messages = [
        _USER,
        {"role": "assistant", "content": "Both.", "tool_calls": calls},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        _USER,
    ]
    rendered = _render(chat_template(), messages)
    assert "<|im_start|>assistant\nBoth.\n<tool_call>" in rendered
    assert rendered.count('"arguments": {}') == 2
    assert (
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n" in rendered
    )
