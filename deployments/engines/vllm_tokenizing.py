"""Plugs the special token guard into vLLM's renderer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deployments.engines.vllm_special_tokens import SpecialTokenGuard

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def guard_special_tokens(engine: AsyncLLM) -> Callable[[object], object]:
    """Make the engine encode special tokens of users as text; returns the function to pass request bodies through.

    vLLM tokenizes on an executor thread through the renderer's `_tokenize_prompt`; prompts without a user-written
    special token take vLLM's own path untouched.
    """
    from vllm.utils.async_utils import make_async

    renderer: Any = engine.renderer
    guard = SpecialTokenGuard(renderer.get_tokenizer())
    original = renderer._tokenize_prompt

    def tokenize(prompt: Any, params: Any) -> Any:
        if not guard.holds_sentinel(prompt["prompt"]):
            return original(prompt, params)
        ids = guard.encode(renderer.get_tokenizer(), prompt["prompt"], params.get_encode_kwargs())
        return renderer._build_tokens_prompt(ids, {**prompt, "prompt": guard.restore(prompt["prompt"])})

    renderer._tokenize_prompt = tokenize
    renderer._tokenize_prompt_async = make_async(tokenize, executor=renderer._executor)
    return guard.neutralise
