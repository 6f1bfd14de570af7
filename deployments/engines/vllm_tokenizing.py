"""Plugs into vLLM's renderer where it tokenizes: the special token guard, and the contract's bound on a prompt."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from cluster.api.prompt_size import prompt_too_long
from deployments.engines.vllm_special_tokens import SpecialTokenGuard

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


prompt_limit: ContextVar[int | None] = ContextVar("prompt_limit", default=None)
"""Tokens that the prompt of the request at work may have; a renderer knows no requests, so it is told this way."""


def guard_special_tokens(engine: AsyncLLM) -> Callable[[object], object]:
    """Make the engine encode special tokens of users as text; returns the function to pass request bodies through.

    A prompt of more tokens than `prompt_limit` is an `ApiError`.

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
    off_loop = make_async(tokenize, executor=renderer._executor)

    async def tokenize_within_limit(prompt: Any, params: Any) -> Any:
        tokenized = await off_loop(prompt, params)
        limit, tokens = prompt_limit.get(), len(tokenized["prompt_token_ids"])
        if limit is not None and tokens > limit:
            raise prompt_too_long(tokens, limit)
        return tokenized

    renderer._tokenize_prompt_async = tokenize_within_limit
    return guard.neutralise
