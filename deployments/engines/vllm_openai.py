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

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

    from cluster.config.engine import EngineConfig

Answer = AsyncGenerator[str, None] | Any
"""A stream of encoded events, or one of vLLM's response or error models."""


class OpenAILayer:
    """The part of vLLM's API server that turns OpenAI bodies into engine requests and back."""

    def __init__(self, engine: AsyncLLM, name: str, path: str, config: EngineConfig) -> None:
        models = OpenAIServingModels(engine_client=engine, base_model_paths=[BaseModelPath(name=name, model_path=path)])
        template = load_chat_template(config.chat_template)
        tools: dict[str, Any] = {
            "enable_auto_tools": config.tool_parser is not None,
            "tool_parser": config.tool_parser,
            "reasoning_parser": config.reasoning_parser or "",
            # Arguments keep to the tool's schema, whether or not it says `strict`; otherwise a required call may hold anything.
            "tool_strict_level": "parameter",
        }
        shared: dict[str, Any] = {"request_logger": None}
        self.renderer = OnlineRenderer(
            model_config=engine.model_config,
            renderer=engine.renderer,
            chat_template=template,
            chat_template_content_format="auto",
            **tools,
            **shared,
        )
        shared |= {"online_renderer": self.renderer, "enable_prompt_tokens_details": True}
        self._chat = OpenAIServingChat(
            engine,
            models,
            "assistant",
            chat_template=template,
            chat_template_content_format="auto",
            **tools,
            **shared,
        )
        self._completion = OpenAIServingCompletion(engine, models, **shared)

    async def create(self, endpoint: Endpoint, body: Mapping[str, object], raw: Request) -> Answer:
        """Start one request. Raises `ApiError` for a body that vLLM's own models refuse."""
        try:
            if endpoint is Endpoint.CHAT:
                return await self._chat.create_chat_completion(ChatCompletionRequest.model_validate(body), raw)
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
