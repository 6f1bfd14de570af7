"""Tool choices that a model's own parser does not cover: `required` and named tools are guaranteed for every model.

vLLM ties every tool choice to a parser. One is needed to read `auto` calls out of free text, but not where a call is
forced: there a grammar makes the answer a call, and nothing is left to guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager

from cluster.api.errors import ApiError

GUIDED: Final = "pointsman_guided"
"""Name under which vLLM knows the parser for forced calls."""


class GuidedToolParser(ToolParser):
    """Forced calls alone: vLLM's base class makes the tools' schemas a grammar and reads the JSON that comes of it."""


def register_guided() -> None:
    """Make `GUIDED` a name that vLLM's OpenAI layer takes; idempotent."""
    ToolParserManager.register_module(GUIDED, module=GuidedToolParser)


def guarantees_forced_calls(parser: str | None) -> bool:
    """Whether vLLM holds a model with this parser to a forced call, instead of hoping for one.

    Raises `KeyError` for a name that vLLM does not know.
    """
    if parser is None:
        return False
    known = ToolParserManager.get_tool_parser(parser)
    return known.supports_required_and_named or known.structural_tag_model is not None


def is_forced(body: Mapping[str, object]) -> bool:
    """Whether the request leaves the model no choice but to call a tool."""
    choice = body.get("tool_choice")
    return bool(body.get("tools")) and choice is not None and choice not in ("none", "auto")


def refuse_auto(body: Mapping[str, object]) -> None:
    """Raises `ApiError` 400 where the model may choose to call a tool: it has no parser that would find the call."""
    if body.get("tools") and body.get("tool_choice", "auto") in (None, "auto"):
        raise ApiError(
            400,
            "unsupported_value",
            "This model has no parser for tool calls, so it cannot be left the choice: make it `required` or `none`, "
            "name a tool, or ask the operator to set `tool_parser`.",
            param="tool_choice",
        )
