"""The messages of a chat: roles, text and tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster.api.errors import ApiError, bad_request
from cluster.api.fields import Fields, as_object, byte_length, required
from cluster.api.json_body import JsonObject, JsonValue, parse_json
from cluster.api.known_fields import CONTENT_PARTS
from cluster.api.tools import NAME
from cluster.config.ingress import LimitsConfig

_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_KNOWN: Final = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
# What servers answer with and clients hand back unchanged; none of it is part of the prompt.
_RETURNED: Final = frozenset({"refusal", "annotations", "reasoning", "reasoning_content"})
_REFUSED: Final = {"function_call": "it is deprecated; use `tool_calls`", "audio": "only text is taken"}
_MAX_TOOL_CALLS: Final = 128
_MAX_ID_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Messages:
    """A chat's messages, cleaned: text parts joined, `developer` as `system`, only known fields."""

    listed: tuple[JsonObject, ...]
    text_bytes: int
    """Bytes of all text in UTF-8, that of tool calls included."""
    last_user_text: str
    """Text of the last user message, empty without one."""


def read_messages(fields: Fields, limits: LimitsConfig) -> Messages:
    """The messages in `fields`. Raises `ApiError` 400 naming field and limit."""
    values = required(fields.array("messages", limits.max_messages, min_items=1), "messages")
    listed: list[JsonObject] = []
    total = 0
    last_user_text = ""
    for index, value in enumerate(values):
        made, size = _message(as_object(value, f"messages.{index}"), limits)
        listed.append(made)
        total += size
        content = made.get("content")
        if made["role"] == "user" and isinstance(content, str):
            last_user_text = content
    return Messages(tuple(listed), total, last_user_text)


def _message(message: Fields, limits: LimitsConfig) -> tuple[JsonObject, int]:
    role = required(message.choice("role", _ROLES), message.at("role"))
    message.allow(_KNOWN | _RETURNED if role == "assistant" else _KNOWN, _REFUSED)
    text = _text(message, limits)
    made: JsonObject = {"role": "system" if role == "developer" else role}
    size = byte_length(text or "")
    name = message.string("name", 64)
    if name is not None:
        if not NAME.fullmatch(name):
            raise bad_request(message.at("name"), f"`{message.at('name')}` must be 1 to 64 letters, digits, _ or -.")
        made["name"] = name
    if role == "assistant" and (calls := message.array("tool_calls", _MAX_TOOL_CALLS)):
        read = [_tool_call(call, message.at(f"tool_calls.{at}"), limits) for at, call in enumerate(calls)]
        size += sum(_call_bytes(call) for call in read)
        made["tool_calls"] = list(read)
    elif message.get("tool_calls"):
        raise bad_request(message.at("tool_calls"), "Only messages of the role assistant have `tool_calls`.")
    if role == "tool":
        identity = message.string("tool_call_id", _MAX_ID_BYTES, empty=False)
        made["tool_call_id"] = required(identity, message.at("tool_call_id"))
    elif message.get("tool_call_id") is not None:
        raise bad_request(message.at("tool_call_id"), "Only messages of the role tool have `tool_call_id`.")
    if text is None and "tool_calls" not in made:
        raise bad_request(message.at("content"), f"`{message.at('content')}` is missing.", "missing_required_parameter")
    made["content"] = text
    return made, size


def _text(message: Fields, limits: LimitsConfig) -> str | None:
    content = message.get("content")
    path = message.at("content")
    if content is None or isinstance(content, str):
        return content
    parts = required(message.array("content", limits.max_messages, min_items=1), path)
    return "\n".join(_part(as_object(part, f"{path}.{index}")) for index, part in enumerate(parts))


def _part(part: Fields) -> str:
    kind = part.get("type")
    if isinstance(kind, str) and kind in CONTENT_PARTS:
        message = f"Content parts of the type `{kind}` are not taken: only text is."
        raise ApiError(400, "unsupported_content", message, param=part.at("type"))
    required(part.choice("type", ("text", "refusal")), part.at("type"))
    name = "text" if kind == "text" else "refusal"
    part.allow(("type", name))
    text = part.get(name)
    if not isinstance(text, str):
        raise bad_request(part.at(name), f"`{part.at(name)}` must be a string.", "invalid_type")
    return text


def _tool_call(value: JsonValue, path: str, limits: LimitsConfig) -> JsonObject:
    call = as_object(value, path)
    call.allow(("id", "type", "function", "index"))
    identity = required(call.string("id", _MAX_ID_BYTES, empty=False), call.at("id"))
    call.choice("type", ("function",))
    function = required(call.object("function"), call.at("function"))
    function.allow(("name", "arguments"))
    name = required(function.string("name", 64), function.at("name"))
    if not NAME.fullmatch(name):
        raise bad_request(function.at("name"), f"`{function.at('name')}` must be 1 to 64 letters, digits, _ or -.")
    arguments = required(function.string("arguments", limits.prompt_bytes), function.at("arguments"))
    if arguments:
        # Chat templates get the arguments parsed, so they are held to the bounds of the body.
        try:
            parse_json(arguments.encode(), limits)
        except ApiError as error:
            message = f"`{function.at('arguments')}` must be a JSON object as text, within the limits of a body."
            raise bad_request(function.at("arguments"), message) from error
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments or "{}"}}


def _call_bytes(call: JsonObject) -> int:
    function = call.get("function")
    return sum(byte_length(str(text)) for text in function.values()) if isinstance(function, dict) else 0
