"""`/v1/chat/completions`: from a parsed body to a request within bounds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from cluster.api.errors import bad_request
from cluster.api.fields import Fields, required
from cluster.api.json_body import JsonObject
from cluster.api.knobs import NO_KNOBS, Knobs, read_knobs
from cluster.api.known_fields import CHAT, REFUSED
from cluster.api.messages import read_messages
from cluster.api.prompt_size import check_prompt_bytes, estimate_tokens
from cluster.api.sampling import read_sampling
from cluster.api.tools import read_response_format, read_tools
from cluster.config.ingress import LimitsConfig

MAX_MODEL_BYTES: Final = 256
_MAX_METADATA: Final = 16
_MAX_METADATA_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat request within bounds. Texts stay out of its repr."""

    model: str = field(repr=False)
    """What the caller wrote: a name, a role or `auto`, not yet looked up."""
    stream: bool
    include_usage: bool
    max_tokens: int | None
    """Completion tokens asked for; None: left open."""
    n: int
    temperature: float | None
    seed: int | None
    messages: int
    """Messages (a count)."""
    prompt_bytes: int
    """Bytes of all text of the prompt, UTF-8, tool definitions included."""
    prompt_tokens_estimate: int
    """About that many tokens."""
    tools: bool
    tool_choice: str | None
    """none, auto, required or named; None without tools."""
    response_format: bool
    """Whether the answer must have a form (JSON)."""
    logprobs: bool
    text: str = field(repr=False)
    """Text of the last user message, for routing signals."""
    body: JsonObject = field(repr=False)
    """The cleaned body, without `model`, to hand to an engine. Not to be changed in place."""
    knobs: Knobs = NO_KNOBS
    """What the caller says about routing."""

    @property
    def sequences(self) -> int:
        """Sequences that the request makes (a count)."""
        return self.n

    def with_body(self, changes: JsonObject) -> ChatRequest:
        """A copy whose body has `changes` in it."""
        return replace(self, body={**self.body, **changes})


def parse_chat(body: JsonObject, limits: LimitsConfig) -> ChatRequest:
    """The chat request in `body`. Raises `ApiError` 400 naming field and limit; never repeats the caller's text."""
    fields = Fields(body)
    fields.allow(CHAT, REFUSED)
    model = required(fields.string("model", MAX_MODEL_BYTES, empty=False), "model")
    sampling, engine_body = read_sampling(fields, limits)
    messages = read_messages(fields, limits)
    tools = read_tools(fields, limits)
    response_format = read_response_format(fields, limits)
    logprobs = _logprobs(fields, limits, engine_body)
    _check_kept_out(fields)
    prompt_bytes = messages.text_bytes + (tools.prompt_bytes if tools is not None else 0)
    check_prompt_bytes(prompt_bytes, limits.prompt_bytes, "messages")
    engine_body["messages"] = list(messages.listed)
    if tools is not None:
        engine_body.update(tools.body)
    if response_format is not None:
        engine_body["response_format"] = response_format
    return ChatRequest(
        model=model,
        stream=sampling.stream,
        include_usage=sampling.include_usage,
        max_tokens=sampling.max_tokens,
        n=sampling.n,
        temperature=sampling.temperature,
        seed=sampling.seed,
        messages=len(messages.listed),
        prompt_bytes=prompt_bytes,
        prompt_tokens_estimate=estimate_tokens(prompt_bytes, len(messages.listed)),
        tools=tools is not None,
        tool_choice=tools.choice if tools is not None else None,
        response_format=response_format is not None,
        logprobs=logprobs,
        text=messages.last_user_text,
        body=engine_body,
        knobs=read_knobs(fields),
    )


def _logprobs(fields: Fields, limits: LimitsConfig, engine_body: JsonObject) -> bool:
    wanted = fields.boolean("logprobs") or False
    top = fields.integer("top_logprobs", 0, limits.max_top_logprobs)
    if top is not None and not wanted:
        raise bad_request("top_logprobs", "`top_logprobs` needs `logprobs`: set that to true or leave this out.")
    if wanted:
        engine_body["logprobs"] = True
        if top is not None:
            engine_body["top_logprobs"] = top
    return wanted


def _check_kept_out(fields: Fields) -> None:
    """Fields that do not change the answer: checked, and not handed on."""
    if fields.boolean("store"):
        raise bad_request("store", "Chats are not stored for later retrieval; set `store` to false or leave it out.")
    modalities = fields.array("modalities", 1, min_items=1)
    if modalities is not None and modalities != ["text"]:
        raise bad_request("modalities", '`modalities` must be ["text"].')
    fields.choice("service_tier", ("auto", "default"))
    fields.string("safety_identifier", 512)
    metadata = fields.object("metadata")
    if metadata is None:
        return
    if len(metadata.raw()) > _MAX_METADATA:
        raise bad_request("metadata", f"`metadata` must have at most {_MAX_METADATA} entries.")
    for key, value in metadata.raw().items():
        if len(key) > 64 or not isinstance(value, str) or len(value) > _MAX_METADATA_BYTES:
            message = f"`metadata` takes keys of at most 64 and text of at most {_MAX_METADATA_BYTES} characters."
            raise bad_request("metadata", message)
