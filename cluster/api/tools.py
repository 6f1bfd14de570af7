"""Tools, the choice among them, and the form of the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cluster.api.errors import ApiError, bad_request
from cluster.api.fields import Fields, as_object, json_bytes, required
from cluster.api.json_body import JsonObject, JsonValue
from cluster.api.schema import check_schema
from cluster.config.ingress import LimitsConfig

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_DESCRIPTION_BYTES: Final = 8192
_MODES: Final = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request. `choice` is none, auto or required, or `named` with the tool's `name`."""

    names: tuple[str, ...]
    choice: str
    name: str | None
    prompt_bytes: int
    """Bytes of the definitions as JSON, which become part of the prompt."""
    body: JsonObject


def read_tools(fields: Fields, limits: LimitsConfig) -> Tools | None:
    """The tools of a request, or None without any. Raises `ApiError` 400 naming field and limit."""
    listed = fields.array("tools", limits.max_tools)
    choice = fields.get("tool_choice")
    parallel = fields.boolean("parallel_tool_calls")
    if not listed:
        if choice is not None and choice != "none":
            raise bad_request("tool_choice", "`tool_choice` needs `tools`; send these too or leave it out.")
        return None
    tools: list[JsonValue] = [_tool(value, f"tools.{index}", limits) for index, value in enumerate(listed)]
    names = tuple(_name_of(tool) for tool in tools)
    if len(set(names)) != len(names):
        raise bad_request("tools", "Two tools in `tools` have the same name; each name may stand once.")
    mode, name = _choice(fields, choice, names)
    body: JsonObject = {"tools": tools, "tool_choice": mode if name is None else _named(name)}
    if parallel is not None:
        body["parallel_tool_calls"] = parallel
    return Tools(names, mode, name, json_bytes(tools), body)


def _named(name: str) -> JsonObject:
    return {"type": "function", "function": {"name": name}}


def _name_of(tool: JsonValue) -> str:
    function = tool["function"] if isinstance(tool, dict) else None
    return str(function["name"]) if isinstance(function, dict) else ""


def _tool(value: JsonValue, path: str, limits: LimitsConfig) -> JsonObject:
    tool = as_object(value, path)
    tool.allow(("type", "function"))
    required(tool.choice("type", ("function",)), tool.at("type"))
    function = required(tool.object("function"), tool.at("function"))
    function.allow(("name", "description", "parameters", "strict"))
    name = required(function.string("name", 64), function.at("name"))
    if not NAME.fullmatch(name):
        raise bad_request(function.at("name"), f"`{function.at('name')}` must be 1 to 64 letters, digits, _ or -.")
    made: JsonObject = {"name": name}
    if (description := function.string("description", _MAX_DESCRIPTION_BYTES)) is not None:
        made["description"] = description
    if (parameters := function.get("parameters")) is not None:
        made["parameters"] = check_schema(parameters, function.at("parameters"), limits)
    if (strict := function.boolean("strict")) is not None:
        made["strict"] = strict
    return {"type": "function", "function": made}


def _choice(fields: Fields, choice: JsonValue, names: tuple[str, ...]) -> tuple[str, str | None]:
    if choice is None:
        return "auto", None
    if isinstance(choice, str):
        return required(fields.choice("tool_choice", _MODES), "tool_choice"), None
    chosen = as_object(choice, "tool_choice")
    chosen.allow(("type", "function"))
    required(chosen.choice("type", ("function",)), "tool_choice.type")
    function = required(chosen.object("function"), "tool_choice.function")
    function.allow(("name",))
    name = required(function.string("name", 64), "tool_choice.function.name")
    if name not in names:
        raise bad_request(
            "tool_choice.function.name", "`tool_choice.function.name` is not the name of a tool in `tools`."
        )
    return "named", name


def read_response_format(fields: Fields, limits: LimitsConfig) -> JsonObject | None:
    """The form of the answer, or None if it is plain text. Raises `ApiError` 400 naming field and limit."""
    form = fields.object("response_format")
    if form is None:
        return None
    kind = required(form.choice("type", ("text", "json_object", "json_schema")), "response_format.type")
    if kind != "json_schema":
        form.allow(("type",))
        return None if kind == "text" else {"type": kind}
    form.allow(("type", "json_schema"))
    outer = required(form.object("json_schema"), "response_format.json_schema")
    outer.allow(("name", "description", "schema", "strict"))
    name = required(outer.string("name", 64), outer.at("name"))
    if not NAME.fullmatch(name):
        raise bad_request(outer.at("name"), f"`{outer.at('name')}` must be 1 to 64 letters, digits, _ or -.")
    made: JsonObject = {"name": name}
    made["schema"] = check_schema(required(outer.get("schema"), outer.at("schema")), outer.at("schema"), limits)
    if (description := outer.string("description", _MAX_DESCRIPTION_BYTES)) is not None:
        made["description"] = description
    if (strict := outer.boolean("strict")) is not None:
        made["strict"] = strict
    return {"type": "json_schema", "json_schema": made}


def tools_unsupported(reason: str) -> ApiError:
    """The 400 for a request whose `tool_choice` the model cannot serve."""
    return ApiError(400, "unsupported_parameter", f"`tool_choice` cannot be served: {reason}.", param="tool_choice")
