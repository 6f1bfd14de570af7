"""The sliding window of a vLLM engine: no sequence, prompt and completion together, holds more than so many tokens.

`cluster.window` decides which turns leave. The counts come from the engine's own chat template and tokenizer, and what is
left is rendered and counted again until it fits, so the bound is exact. What leaves is counted, never silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers.params import TokenizeParams, merge_kwargs
from vllm.utils.mistral import is_mistral_tokenizer

from cluster.api.errors import ApiError
from cluster.window import Turn, slide
from deployments.engines.protocol import Endpoint, EngineStartError, TokenUsage

if TYPE_CHECKING:
    from vllm.renderers.online_renderer import OnlineRenderer

COMPLETION_DEFAULT_TOKENS: Final = 16
"""What a completions request without `max_tokens` gets, here as in OpenAI's API."""

Body = dict[str, Any]
"""A request body, checked by the ingress."""


@dataclass(frozen=True, slots=True)
class _Trimmed:
    """A prompt of a completions request as token ids, and how many had to leave."""

    ids: list[int]
    truncated: int


class ChatWindow:
    """Makes requests fit `window_tokens`, or the model's own limit where that is smaller.

    Takes bodies whose special tokens are neutralised already. Raises `EngineStartError` for a model whose prompts are
    not made by a chat template.
    """

    def __init__(self, renderer: OnlineRenderer, window_tokens: int, max_model_len: int) -> None:
        if renderer.use_harmony:
            raise EngineStartError(
                "kv_window_tokens is not available for models with the Harmony prompt format; leave it out"
            )
        self._online = renderer
        self._renderer: Any = renderer.renderer
        self._window = min(window_tokens, max_model_len)

    async def apply(self, endpoint: Endpoint, body: Body) -> tuple[Body, TokenUsage]:
        """The body that fits, and what left it (`truncated_turns` counts messages).

        Raises `ApiError` 400 with the sizes where what has to stay does not fit.
        """
        if endpoint is Endpoint.CHAT:
            return await self._chat(body)
        return await self._completion(body)

    async def _chat(self, body: Body) -> tuple[Body, TokenUsage]:
        asked = body.get("max_completion_tokens") or body.get("max_tokens")
        room = self._room(asked, max(1, self._window // 4))
        messages: Sequence[Mapping[str, Any]] = body["messages"]
        try:
            total = await self._count_chat(body, messages)
        except ValidationError:
            # Not a chat that the engine takes; it says so itself, in the words that it uses for all such.
            return body, TokenUsage()
        kept, used = messages, total
        if total > self._window - room:
            kept, used = await self._slide(body, messages, total, room)
        fitted = {**body, "messages": list(kept)}
        if asked is None:
            fitted["max_tokens"] = self._window - used
        return fitted, TokenUsage(truncated_turns=len(messages) - len(kept), truncated_tokens=total - used)

    async def _slide(
        self, body: Body, messages: Sequence[Mapping[str, Any]], total: int, room: int
    ) -> tuple[Sequence[Mapping[str, Any]], int]:
        texts = await asyncio.gather(*(self._tokenize(_text_of(message), False) for message in messages))
        # What the template and the tool definitions add is shared out evenly at first ...
        share = max(0, total - sum(map(len, texts))) / len(messages)
        turns = [Turn(str(m["role"]), round(len(ids) + share)) for m, ids in zip(messages, texts, strict=True)]
        overhead = 0
        while True:
            kept = slide(turns, self._window, room, overhead).kept
            chosen = [messages[index] for index in kept]
            used = await self._count_chat(body, chosen)
            if used <= self._window - room:
                return chosen, used
            # ... and then put right: with the true overhead, at least one turn more has to leave.
            overhead = used - sum(turns[index].tokens for index in kept)

    async def _count_chat(self, body: Body, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of the rendered chat, exactly as vLLM will render it. The template and the tokenizer run on threads."""
        request = ChatCompletionRequest.model_validate({**body, "messages": list(messages)})
        tools = [tool.model_dump() for tool in request.tools] if request.tools is not None else None
        online = self._online
        parameters = request.build_chat_params(online.chat_template, online.chat_template_content_format).with_defaults(
            merge_kwargs(
                online.default_chat_template_kwargs,
                {"tools": tools, "tokenize": is_mistral_tokenizer(self._renderer.tokenizer)},
            )
        )
        _, prompt = await self._renderer.render_messages_async(request.messages, parameters)
        if "prompt_token_ids" in prompt:
            return len(prompt["prompt_token_ids"])
        return len(await self._tokenize(prompt["prompt"], request.add_special_tokens))

    async def _completion(self, body: Body) -> tuple[Body, TokenUsage]:
        room = self._room(body.get("max_tokens"), COMPLETION_DEFAULT_TOKENS)
        prompt = body.get("prompt")
        several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
        prompts: Sequence[Any] = prompt if several and isinstance(prompt, list) else [prompt]
        if not all(isinstance(one, str | list) for one in prompts):
            return body, TokenUsage()
        trimmed = await asyncio.gather(*(self._trim(one, self._window - room) for one in prompts))
        lost = sum(one.truncated for one in trimmed)
        if not lost:
            return body, TokenUsage()
        ids = [one.ids for one in trimmed]
        return {**body, "prompt": ids if several else ids[0]}, TokenUsage(truncated_tokens=lost)

    async def _trim(self, prompt: str | list[int], budget: int) -> _Trimmed:
        ids = prompt if isinstance(prompt, list) else await self._tokenize(prompt, True)
        if len(ids) <= budget:
            return _Trimmed(ids, 0)
        # A model that was trained with a first token (BOS) needs it wherever the text begins.
        first = ids[:1] if ids[0] == self._renderer.get_tokenizer().bos_token_id and budget > 1 else []
        kept = first + ids[len(ids) - budget + len(first) :]
        return _Trimmed(kept, len(ids) - len(kept))

    def _room(self, asked: int | None, default: int) -> int:
        room = default if asked is None else asked
        if room >= self._window:
            raise ApiError(
                400,
                "context_length_exceeded",
                f"`max_tokens` is {room}; the window holds {self._window} tokens of prompt and completion together. "
                f"Ask for fewer than {self._window}.",
                param="max_tokens",
            )
        return room

    async def _tokenize(self, text: str, add_special_tokens: bool) -> list[int]:
        parameters = TokenizeParams(max_total_tokens=None, add_special_tokens=add_special_tokens)
        prompt = await self._renderer._tokenize_prompt_async({"prompt": text}, parameters)
        ids: list[int] = prompt["prompt_token_ids"]
        return ids


def _text_of(value: object) -> str:
    """All strings in a message, its keys left out: about what the template shows of it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(map(_text_of, value))
    if isinstance(value, dict):
        return " ".join(_text_of(item) for item in value.values())
    return ""
