"""Reading the text out of answers in OpenAI's form, and making answers of our own in it, whole or as events."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from cluster.api.json_body import JsonObject, JsonValue
from deployments.engines.protocol import Endpoint, TokenUsage

_CHAT_ID = "chatcmpl-"
_COMPLETION_ID = "cmpl-"


def texts_of(body: bytes) -> tuple[str, ...]:
    """The text of each choice of a whole answer, empty for one without text; nothing for what is no such answer."""
    try:
        parsed: JsonValue = json.loads(body)
    except ValueError:
        return ()
    choices = parsed.get("choices") if isinstance(parsed, dict) else None
    return tuple(_said(choice, "message") for choice in choices) if isinstance(choices, list) else ()


def streamed_texts(events: bytes) -> tuple[str, ...]:
    """The same of a stream's events, put together by choice."""
    texts: dict[int, list[str]] = {}
    for line in events.split(b"\n"):
        if not line.startswith(b"data:"):
            continue
        try:
            parsed: JsonValue = json.loads(line[5:])
        except ValueError:
            continue
        choices = parsed.get("choices") if isinstance(parsed, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            index = choice.get("index") if isinstance(choice, dict) else None
            if isinstance(index, int):
                texts.setdefault(index, []).append(_said(choice, "delta"))
    return tuple("".join(texts[index]) for index in sorted(texts))


def _said(choice: JsonValue, holder: str) -> str:
    """The text of a choice: of its message or delta in a chat, its own in a completion."""
    if not isinstance(choice, dict):
        return ""
    held = choice.get(holder)
    text = held.get("content") if isinstance(held, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


@dataclass(frozen=True, slots=True)
class MadeAnswer:
    """An answer of one choice that the ingress words itself, or passes on in another form than it came in."""

    endpoint: Endpoint
    request_id: str
    model: str
    created: int
    """Unix time, seconds."""
    text: str = field(repr=False)
    usage: TokenUsage = field(default_factory=TokenUsage)
    finish_reason: str = "stop"

    def whole(self) -> bytes:
        """As one JSON body."""
        chat = self.endpoint is Endpoint.CHAT
        said: JsonObject = {"message": {"role": "assistant", "content": self.text}} if chat else {"text": self.text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self.finish_reason}
        kind = "chat.completion" if chat else "text_completion"
        return _encode({**self._head(kind), "choices": [choice], "usage": self._usage()})

    def events(self, *, include_usage: bool) -> bytes:
        """As server-sent events, without `[DONE]`."""
        chat = self.endpoint is Endpoint.CHAT
        head = self._head("chat.completion.chunk" if chat else "text_completion")
        said: JsonObject = {"delta": {"role": "assistant", "content": self.text}} if chat else {"text": self.text}
        nothing: JsonObject = {"delta": {}} if chat else {"text": ""}
        chunks: list[JsonObject] = [
            {**head, "choices": [{"index": 0, **said, "finish_reason": None}]},
            {**head, "choices": [{"index": 0, **nothing, "finish_reason": self.finish_reason}]},
        ]
        if include_usage:
            chunks.append({**head, "choices": [], "usage": self._usage()})
        return b"".join(b"data: " + _encode(chunk) + b"\n\n" for chunk in chunks)

    def _head(self, kind: str) -> JsonObject:
        prefix = _CHAT_ID if self.endpoint is Endpoint.CHAT else _COMPLETION_ID
        return {"id": prefix + self.request_id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> JsonObject:
        prompt, completion = self.usage.prompt_tokens, self.usage.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _encode(value: JsonObject) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
