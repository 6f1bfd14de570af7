"""vLLM's own OpenAI layer, used inside a replica: logprobs, structured output, tools and usage come with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from starlette.requests import Request
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.renderers.chat_utils import load_chat_template
from vllm.renderers.online_renderer import OnlineRenderer

from cluster.api.errors import ApiError
from deployments.engines.protocol import Endpoint, TokenUsage
from deployments.engines.vllm_judging import JudgingClient
from deployments.engines.vllm_tools import GUIDED, guarantees_forced_calls, is_forced, refuse_auto, register_guided

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

    from cluster.config.engine import EngineConfig

Answer = AsyncGenerator[str, None] | Any
"""A stream of encoded events, or one of vLLM's response or error models."""


class OpenAILayer:
    """The part of vLLM's API server that turns OpenAI bodies into engine requests and back."""

    def __init__(self, engine: AsyncLLM, name: str, path: str, config: EngineConfig) -> None:
        client: Any = JudgingClient(engine)
        models = OpenAIServingModels(engine_client=client, base_model_paths=[BaseModelPath(name=name, model_path=path)])
        self._engine, self._models, self._template = client, models, load_chat_template(config.chat_template)
        self._reasoning_parser = config.reasoning_parser or ""
        self._has_parser = config.tool_parser is not None
        register_guided()
        self.renderer, self._chat = self._chat_with(config.tool_parser)
        self._forced = self._chat
        if not guarantees_forced_calls(config.tool_parser):
            _, self._forced = self._chat_with(GUIDED)
        self._completion = OpenAIServingCompletion(
            client, models, request_logger=None, online_renderer=self.renderer, enable_prompt_tokens_details=True
        )

    def _chat_with(self, tool_parser: str | None) -> tuple[OnlineRenderer, OpenAIServingChat]:
        shared: dict[str, Any] = {
            "chat_template": self._template,
            "chat_template_content_format": "auto",
            "request_logger": None,
            "enable_auto_tools": tool_parser is not None,
            "tool_parser": tool_parser,
            "reasoning_parser": self._reasoning_parser,
            # Arguments keep to the tool's schema, whether or not it says `strict`; otherwise a required call may hold anything.
            "tool_strict_level": "parameter",
        }
        engine = self._engine
        renderer = OnlineRenderer(model_config=engine.model_config, renderer=engine.renderer, **shared)
        chat = OpenAIServingChat(
            engine, self._models, "assistant", online_renderer=renderer, enable_prompt_tokens_details=True, **shared
        )
        return renderer, chat

    async def create(self, endpoint: Endpoint, body: Mapping[str, object], raw: Request) -> Answer:
        """Start one request. Raises `ApiError` for a body that vLLM's own models refuse."""
        try:
            if endpoint is Endpoint.CHAT:
                if not self._has_parser:
                    refuse_auto(body)
                chat = self._forced if is_forced(body) else self._chat
                return await chat.create_chat_completion(ChatCompletionRequest.model_validate(body), raw)
            return await self._completion.create_completion(CompletionRequest.model_validate(body), raw)
        except ValidationError as error:
            raise _api_error(error) from None


def bare_request(request_id: str, trace_headers: Mapping[str, str]) -> Request:
    """What vLLM's layer reads of an HTTP request: its id and its trace context, and nothing that a user sent."""
    headers = [(b"x-request-id", request_id.encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in trace_headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b""})


def usage_of(raw: Request) -> TokenUsage:
    """Token counts that vLLM's layer noted on the request, zero if it ended before any."""
    metadata = getattr(raw.state, "request_metadata", None)
    usage = getattr(metadata, "final_usage_info", None)
    if usage is None:
        return TokenUsage()
    details = usage.prompt_tokens_details
    return TokenUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
    )


def _api_error(error: ValidationError) -> ApiError:
    """vLLM's own complaint without the input that it complains about."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    return ApiError(
        status=400,
        code="invalid_value",
        message=f"{field or 'The body'} is not accepted by the engine ({first['type']}); see the API reference.",
        param=field,
    )
