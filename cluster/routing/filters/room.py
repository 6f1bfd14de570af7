"""A model must hold the prompt and the answer that is asked for."""

from __future__ import annotations

from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals


def against(signals: RequestSignals, option: Option) -> str | None:
    """Words if the prompt, as estimated, and the completion do not fit; a model with a sliding window fits any prompt."""
    engine = option.config.engine
    if engine.max_model_len is None or engine.kv_window_tokens is not None:
        return None
    wanted = signals.prompt_tokens + (signals.max_tokens or 1)
    if wanted <= engine.max_model_len:
        return None
    return f"holds {engine.max_model_len} tokens, and about {wanted} are asked for"
