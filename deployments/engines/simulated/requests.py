"""OpenAI bodies that the simulated engine takes, and what it refuses because it has no distribution over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.api.errors import ApiError, bad_request
from deployments.engines.protocol import Endpoint
from deployments.engines.simulated.sequence import VOCABULARY, mix
from deployments.engines.simulated.text import tokens_of

NATURAL_TOKENS: Final = 256
"""Tokens after which an answer ends by itself when the request sets no `max_tokens`."""

_Prompt: TypeAlias = str | list[str] | list[int] | list[list[int]]
_Count = Annotated[int, Field(ge=1, le=16_777_216)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class _ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]


class _Body(BaseModel):
    """Fields of both endpoints. Those that shape sampling choose among synthetic texts; they mean nothing more here."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    user: str | None = None
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    max_tokens: _Count | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None


class _Chat(_Body):
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: _Count | None = None
    logprobs: Literal[False] | None = None
    response_format: _ResponseFormat | None = None


class _Completion(_Body):
    prompt: _Prompt
    logprobs: None = None
    echo: Literal[False] | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks for: one sequence per prompt and choice."""

    prompts: tuple[tuple[int, ...], ...]
    choices: int
    """Choices per prompt."""
    limit: int
    """Tokens that each choice gets unless it stops before."""
    ends: Literal["length", "stop"]
    """The finish reason of a choice that reaches `limit`."""
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    seeds: tuple[int, ...]
    """One per choice."""


def read_work(endpoint: Endpoint, body: Mapping[str, object], seed: int, max_model_len: int) -> Work:
    """The work in a request's body. `seed` is the engine's, `max_model_len` counts prompt and completion tokens.

    Raises `ApiError` 400 for fields that need a real model, and for what does not fit the context.
    """
    read: _Chat | _Completion
    try:
        if endpoint is Endpoint.CHAT:
            read = _Chat.model_validate(body)
            prompts = [_chat_tokens(read.messages)]
            asked = read.max_completion_tokens or read.max_tokens
        elif endpoint is Endpoint.COMPLETION:
            read = _Completion.model_validate(body)
            prompts = _prompts(read.prompt)
            asked = read.max_tokens
        else:
            raise bad_request("model", "A simulated model makes no embeddings; ask an encoder.")
    except ValidationError as error:
        raise _refused(error) from None
    longest = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise bad_request("prompt", "A prompt must not be empty.")
    room = max_model_len - longest
    if room < (asked or 1):
        message = (
            f"The prompt has {longest} tokens and {asked or 1} are to be generated; together at most {max_model_len} "
            "fit. Shorten the prompt or lower `max_tokens`."
        )
        raise bad_request("messages" if endpoint is Endpoint.CHAT else "prompt", message, "context_length_exceeded")
    stop = (read.stop,) if isinstance(read.stop, str) else tuple(read.stop or ())
    natural = min(room, NATURAL_TOKENS)
    return Work(
        prompts=tuple(tuple(prompt) for prompt in prompts),
        choices=read.n or 1,
        limit=asked or natural,
        ends="length" if asked is not None or natural < NATURAL_TOKENS else "stop",
        stop=tuple(item for item in stop if item),
        stream=read.stream,
        include_usage=read.stream_options.include_usage,
        seeds=tuple(_seed(read, seed, choice) for choice in range(read.n or 1)),
    )


def _seed(body: _Body, seed: int, choice: int) -> int:
    """Greedy choices are all the same, as a model's are; otherwise each choice and each seed has its own text."""
    state = mix(0, seed)
    if body.temperature == 0:
        return state
    return mix(mix(state, (body.seed or 0) + 1), choice)


def _chat_tokens(messages: list[_Message]) -> list[int]:
    tokens: list[int] = []
    for message in messages:
        content = message.content
        text = content if isinstance(content, str) else "".join(part.text for part in content or ())
        tokens += tokens_of(f"<{message.role}>\n")
        tokens += tokens_of(text)
    return tokens + tokens_of("<assistant>\n")


def _prompts(prompt: _Prompt) -> list[list[int]]:
    if isinstance(prompt, str):
        return [tokens_of(prompt)]
    if not prompt:
        return [[]]
    single = [item for item in prompt if isinstance(item, int)]
    if single:
        return [_foreign(single)]
    return [
        tokens_of(item) if isinstance(item, str) else _foreign(item) for item in prompt if not isinstance(item, int)
    ]


def _foreign(ids: list[int]) -> list[int]:
    """Ids from a caller are another tokenizer's: they are kept apart from generated ones."""
    return [VOCABULARY + token for token in ids]


def _refused(error: ValidationError) -> ApiError:
    """Names the field and what is wrong with it, never what it held."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    field = str(first["loc"][0]) if first["loc"] else None
    if first["type"] in ("extra_forbidden", "literal_error", "none_required"):
        message = (
            f"`{field}` needs a real model: this one is simulated and has no distribution over tokens. Leave it out."
        )
        return bad_request(field, message, "unsupported_parameter")
    return bad_request(field, f"`{field}` is not accepted ({first['type']}); see the API reference.")
