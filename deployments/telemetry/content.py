"""What was said, as GenAI semantic conventions write it on spans: off unless the operator asks for it.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/, attributes `gen_ai.input.messages` and
`gen_ai.output.messages`: a JSON array of messages, each with a role and its parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from deployments.telemetry.otlp import TelemetryConfigError

CAPTURE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""The standard variable that asks for content."""

MAX_TEXT_CHARS: Final = 16_384
"""Characters of text that one attribute holds; of longer input the newest messages stay."""

MAX_CHARS: Final = 32_768
"""Characters of one attribute, JSON and all."""

_YES: Final = frozenset({"true", "span_only", "span_and_event"})
_NO: Final = frozenset({"", "false", "no_content"})
_MAX_CHOICES: Final = 16
_MAX_PARTS: Final = 64
_MAX_NAME: Final = 128


def captures_content(environ: Mapping[str, str]) -> bool:
    """Whether spans are to carry what was said. Raises `TelemetryConfigError` for a value that cannot be followed."""
    asked = environ.get(CAPTURE, "").strip().lower()
    if asked in _YES:
        return True
    if asked in _NO:
        return False
    raise TelemetryConfigError(f"{CAPTURE}={asked[:40]!r} is not supported: use span_only, or leave it unset.")


def input_messages(body: Mapping[str, Any]) -> str | None:
    """The messages (or the prompt) of a validated OpenAI request, None for a request that has neither."""
    messages = body.get("messages")
    if isinstance(messages, Sequence) and not isinstance(messages, str):
        return _fitted([_message(message) for message in messages if isinstance(message, Mapping)])
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return _fitted([_said("user", prompt)])
    return None


class OutputRecorder:
    """Gathers an answer from the pieces that go to the client: one JSON body, or server-sent events."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._finish: dict[int, str] = {}
        self._left = MAX_TEXT_CHARS
        self._cut = 0

    def add(self, data: bytes) -> None:
        """Take one or more whole events, or a whole body. What is not understood is left out; never raises."""
        if data.startswith(b"{"):
            self._document(data)
            return
        for line in data.split(b"\n"):
            if line.startswith(b"data:"):
                self._document(line.removeprefix(b"data:").strip())

    def messages(self) -> str | None:
        """What `gen_ai.output.messages` holds, None if nothing came."""
        if not self._texts:
            return None
        said = []
        for index in sorted(self._texts):
            message = _said("assistant", "".join(self._texts[index]))
            message["finish_reason"] = self._finish.get(index, "error")
            said.append(message)
        if self._cut:
            said[-1]["parts"].append(_text(_left_out(self._cut)))
        return _fitted(said)

    def _document(self, data: bytes) -> None:
        try:
            document = json.loads(data)
        except ValueError:
            return
        choices = document.get("choices") if isinstance(document, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._choice(choice)

    def _choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index")
        if not isinstance(index, int) or not 0 <= index < _MAX_CHOICES:
            return
        texts = self._texts.setdefault(index, [])
        said = choice.get("delta") or choice.get("message") or {}
        text = choice.get("text") or said.get("content") or ""
        calls = said.get("tool_calls") or ()
        for piece in (text, *(json.dumps(call, ensure_ascii=False) for call in calls)):
            texts.append(piece[: self._left])
            self._cut += max(0, len(piece) - self._left)
            self._left = max(0, self._left - len(piece))
        if isinstance(finish := choice.get("finish_reason"), str):
            self._finish[index] = finish


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = str(message.get("role", "user")), message.get("content")
    if isinstance(content, str):
        made = _said(role, content)
    else:
        texts = [part.get("text") for part in content or () if isinstance(part, Mapping)]
        made = {"role": role, "parts": [_text(text) for text in texts if isinstance(text, str)]}
    if role == "tool":
        response = "".join(part["content"] for part in made["parts"])
        made["parts"] = [{"type": "tool_call_response", "id": _name(message.get("tool_call_id")), "response": response}]
    for call in message.get("tool_calls") or ():
        if not isinstance(call, Mapping):
            continue
        function = call.get("function") or {}
        made["parts"].append(
            {
                "type": "tool_call",
                "id": _name(call.get("id")),
                "name": _name(function.get("name")),
                "arguments": function.get("arguments"),
            }
        )
    return made


def _name(value: object) -> str | None:
    return value[:_MAX_NAME] if isinstance(value, str) else None


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [_text(text)]}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}


def _left_out(characters: int) -> str:
    return f"[{characters} characters left out]"


def _fitted(messages: list[dict[str, Any]]) -> str:
    """The messages as JSON of at most MAX_CHARS characters: what is oldest is cut first, and what was cut is said."""
    messages = _newest(messages)
    room = MAX_TEXT_CHARS
    while True:
        whole = json.dumps(_shortened(messages, room), ensure_ascii=False, separators=(",", ":"))
        if len(whole) <= MAX_CHARS:
            return whole
        if room == 0:
            # Escapes in names and ids can make even the frames too long.
            return json.dumps([_said("user", _left_out(len(whole)))])
        room //= 2


def _newest(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest messages, of _MAX_PARTS parts in all, with a note on how many are not among them."""
    kept: list[dict[str, Any]] = []
    left = _MAX_PARTS
    for message in reversed(messages):
        if left <= 0:
            break
        kept.append({**message, "parts": message["parts"][-left:]})
        left -= max(1, len(message["parts"]))
    missing = len(messages) - len(kept)
    note = [_said(messages[0]["role"], f"[{missing} older messages left out]")] if missing else []
    return note + kept[::-1]


def _shortened(messages: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    newest_first = []
    for message in reversed(messages):
        parts = []
        for part in reversed(message["parts"]):
            made = dict(part)
            for field in ("content", "response", "arguments"):
                text = made.get(field)
                if isinstance(text, str):
                    made[field] = text if len(text) <= room else text[:room] + _left_out(len(text) - room)
                    room = max(0, room - len(text))
            parts.append(made)
        newest_first.append({**message, "parts": parts[::-1]})
    return newest_first[::-1]
