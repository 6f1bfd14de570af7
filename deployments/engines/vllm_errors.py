"""What vLLM refuses, in OpenAI's form and in words that hold nothing of what the caller sent.

vLLM's own messages often repeat the value that they complain about: a schema, a message, a pattern. Only those known to
hold nothing but numbers and names of fields are handed on.
"""

from __future__ import annotations

import json
import re
from typing import Final

from cluster.api.errors import ApiError

_NUMBER: Final = r"-?[0-9][0-9.e+-]*"

_NUMBERS_ONLY: Final = tuple(
    re.compile(pattern)
    for pattern in (
        (
            rf"This model's maximum context length is {_NUMBER} tokens\. However, your prompt contains (at least )?{_NUMBER} "
            rf"(input tokens|characters \(more than {_NUMBER} characters, which is the upper bound for {_NUMBER} input "
            r"tokens\))[a-z ,]*\. Please reduce the length of the input prompt\."
        ),
        (
            rf"max_(completion_)?tokens={_NUMBER} cannot be greater than max_model_len={_NUMBER}\. "
            r"Please request fewer output tokens\."
        ),
        rf"[a-z_]{{1,32}} must be [a-zA-Z0-9 ,.()\[\]-]{{1,80}}, got {_NUMBER}\.",
        rf"Token id {_NUMBER} is out of vocabulary",
        r"The JSON schema is nested too deeply: objects and arrays may nest at most [0-9]+ levels",
        rf"token_id\(s\) \[[0-9, -]{{1,400}}\] in logit_bias contain out-of-vocab token ids\. Vocabulary size: {_NUMBER}",
    )
)

_TOOLS: Final = re.compile(r"requires --(enable-auto-tool-choice|tool-call-parser)")
_GRAMMAR: Final = re.compile(r"grammar|json.?schema|xgrammar|structured.output|regex", re.IGNORECASE)
_FIELD: Final = re.compile(r"[a-z_]{1,40}")
_NOT_OF_THE_BODY: Final = frozenset({"input_tokens", "input_text"})


def refusal(status: int, message: str, param: str | None) -> ApiError:
    """vLLM's error `message` with HTTP `status` (400 or more) as one of ours."""
    param = param if param is not None and _FIELD.fullmatch(param) and param not in _NOT_OF_THE_BODY else None
    if status >= 500:
        text = "The engine failed on this request; its replica's log has the cause. Try again."
        return ApiError(status, "engine_failed", text, type="server_error")
    # vLLM appends the parameter and the value that was refused.
    first = message.split("\n", 1)[0].split(" (parameter=", 1)[0].strip()
    if any(pattern.fullmatch(first) for pattern in _NUMBERS_ONLY):
        code = "context_length_exceeded" if "max_model_len" in first or "context length" in first else "invalid_value"
        return ApiError(status, code, first, param=param)
    if _TOOLS.search(first):
        text = "This model has no parser for tool calls: leave `tools` out, or ask the operator to set `tool_parser`."
        return ApiError(status, "unsupported_value", text, param="tool_choice")
    if _GRAMMAR.search(first):
        text = "The engine cannot keep to this JSON schema; use a simpler one in `response_format` or the tools."
        return ApiError(status, "invalid_schema", text, param=param)
    text = f"The engine does not accept {f'`{param}`' if param else 'the request'}; see the API reference."
    return ApiError(status, "invalid_value", text, param=param)


def of_event(event: str) -> ApiError:
    """The error in a stream's `data: {"error": ...}` event."""
    try:
        error = json.loads(event.removeprefix("data:"))["error"]
        return refusal(int(error["code"]), str(error["message"]), error.get("param"))
    except (ValueError, KeyError, TypeError):
        return refusal(500, "", None)
