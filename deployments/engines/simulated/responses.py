"""OpenAI responses of the simulated engine. Every one says that it is simulated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from deployments.engines.protocol import Endpoint, TokenUsage

FINGERPRINT: Final = "simulated"


def shown_name(name: str) -> str:
    """The model's name as responses show it."""
    return f"{name} (simulated)"


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished choice."""

    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes the responses of one request."""

    endpoint: Endpoint
    request_id: str
    model: str
    created: int

    def opening(self, index: int) -> bytes:
        """A chat stream's first event, which names the role; completions have none."""
        if self.endpoint is not Endpoint.CHAT:
            return b""
        return self._event([self._delta(index, {"role": "assistant", "content": ""}, None)])

    def piece(self, index: int, text: str, finish_reason: str | None) -> bytes:
        """An event with generated text, the last one with its finish reason."""
        if self.endpoint is Endpoint.CHAT:
            return self._event([self._delta(index, {"content": text}, finish_reason)])
        return self._event([{"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}])

    def usage(self, usage: TokenUsage) -> bytes:
        """The event with token counts, sent last when it was asked for."""
        return self._event([], usage)

    def whole(self, choices: Sequence[Choice], usage: TokenUsage) -> bytes:
        """The body of a plain response."""
        if self.endpoint is Endpoint.CHAT:
            listed: list[dict[str, object]] = [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text},
                    "logprobs": None,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ]
        else:
            listed = [
                {"index": index, "text": choice.text, "logprobs": None, "finish_reason": choice.finish_reason}
                for index, choice in enumerate(choices)
            ]
        return _encode({**self._head(whole=True), "choices": listed, "usage": _usage(usage)})

    def _head(self, *, whole: bool) -> dict[str, object]:
        chat = self.endpoint is Endpoint.CHAT
        kind = ("chat.completion" if whole else "chat.completion.chunk") if chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }

    def _event(self, choices: list[dict[str, object]], usage: TokenUsage | None = None) -> bytes:
        event = {**self._head(whole=False), "choices": choices}
        if usage is not None:
            event["usage"] = _usage(usage)
        return b"data: " + _encode(event) + b"\n\n"

    @staticmethod
    def _delta(index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, object]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _usage(usage: TokenUsage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
