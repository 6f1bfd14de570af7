"""A model must be able to do what is asked: tools that it may call on its own need a parser for its calls."""

from __future__ import annotations

from cluster.config.engine import EngineType
from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals


def against(signals: RequestSignals, option: Option) -> str | None:
    """Words if tools are offered for the model to choose, and nothing reads its calls."""
    engine = option.config.engine
    if signals.tools and engine.type is EngineType.VLLM and engine.tool_parser is None:
        return "has no tool parser"
    return None
