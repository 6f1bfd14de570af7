"""Asks the cluster and reads its answer, streamed or whole, with everything that it says about itself."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from deployments.cli.api import Api, Reply
from deployments.cli.errors import CliError

PATH = "/v1/chat/completions"

OnText = Callable[[str], None]

_COMMENT = b": pointsman "
_DATA = b"data:"
_DONE = b"[DONE]"
_MAX_LINE = 1 << 20
_TRACE_HEADER = "x-pointsman-trace-id"


class Message(msgspec.Struct, frozen=True):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how."""

    messages: Sequence[Message]
    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    stream: bool = True
    timeout_s: float = 300.0

    def body(self) -> dict[str, object]:
        """The request body."""
        body: dict[str, object] = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
            "stream": self.stream,
        }
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        return body


class PoolsTold(msgspec.Struct, frozen=True):
    """What pools of experts did for an answer."""

    degraded: bool = False
    degraded_reason: str | None = None


class ExpertsTold(msgspec.Struct, frozen=True):
    """Which experts an answer used."""

    pools: PoolsTold | None = None


class Provenance(msgspec.Struct, frozen=True):
    """What the cluster says about an answer."""

    model: str | None = None
    role: str | None = None
    reason: str | None = None
    engine: str | None = None
    attempts: int = 1
    trace_id: str | None = None
    cached_tokens: int = 0
    truncated_turns: int = 0
    truncated_tokens: int = 0
    experts: ExpertsTold | None = None

    @property
    def degraded(self) -> bool:
        """Whether other experts stood in for some that nobody could compute."""
        return self.experts is not None and self.experts.pools is not None and self.experts.pools.degraded


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    provenance: Provenance
    request_id: str | None
    first_s: float | None
    """Seconds until the first text; None for an answer that was not streamed."""
    total_s: float

    @property
    def tokens_per_s(self) -> float | None:
        """Speed after the first token, None if there is too little to tell."""
        if self.first_s is None or self.completion_tokens < 2 or self.total_s <= self.first_s:
            return None
        return (self.completion_tokens - 1) / (self.total_s - self.first_s)


class BrokenAnswerError(CliError):
    """The answer did not come to its end."""

    def __init__(self, message: str, remedy: str | None = None, trace_id: str | None = None) -> None:
        super().__init__(message, remedy)
        self.trace_id = trace_id


class RefusedAnswerError(CliError):
    """The cluster answered with an error."""

    def __init__(self, error: CliError, trace_id: str | None) -> None:
        super().__init__(error.message, error.remedy, error.code)
        self.trace_id = trace_id


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    message: _Delta = _Delta()
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct, frozen=True):
    message: str = ""
    code: str | int | None = None


class _Chunk(msgspec.Struct, frozen=True):
    """An event of a stream, or a whole answer: their fields do not collide."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None
    pointsman: Provenance | None = None


def ask(api: Api, question: Question, on_text: OnText) -> Answer:
    """The answer; `on_text` gets each piece as it comes.

    Raises `RefusedAnswerError` for a refusal and `BrokenAnswerError` for an answer that breaks off.
    """
    started = time.monotonic()
    reply = api.post(PATH, question.body(), question.timeout_s)
    try:
        if reply.status != 200:
            error = api.refusal(reply.status, reply.body.read(_MAX_LINE))
            raise RefusedAnswerError(error, reply.headers.get(_TRACE_HEADER))
        if question.stream:
            return _read_stream(reply, started, on_text)
        answer = _read_whole(reply, started)
        on_text(answer.text)
        return answer
    except (OSError, http.client.HTTPException) as error:
        what = "nothing came for too long" if isinstance(error, TimeoutError) else type(error).__name__
        raise BrokenAnswerError(
            f"the connection broke in the middle of the answer ({what})", trace_id=reply.headers.get(_TRACE_HEADER)
        ) from None
    except msgspec.MsgspecError as error:
        raise BrokenAnswerError(
            f"the answer is not in OpenAI's form: {error}", trace_id=reply.headers.get(_TRACE_HEADER)
        ) from None
    finally:
        reply.body.close()


def _read_whole(reply: Reply, started: float) -> Answer:
    chunk = msgspec.json.decode(reply.body.read(), type=_Chunk)
    choice = chunk.choices[0] if chunk.choices else _Choice()
    usage = chunk.usage or _Usage()
    return Answer(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        provenance=chunk.pointsman or _from_headers(reply),
        request_id=reply.headers.get("x-request-id"),
        first_s=None,
        total_s=time.monotonic() - started,
    )


def _read_stream(reply: Reply, started: float, on_text: OnText) -> Answer:
    pieces: list[str] = []
    first_s: float | None = None
    last_s = 0.0
    finish: str | None = None
    usage = _Usage()
    provenance: Provenance | None = None
    decoder = msgspec.json.Decoder(_Chunk)
    for line in _lines(reply):
        if line.startswith(_COMMENT):
            provenance = msgspec.json.decode(line.removeprefix(_COMMENT), type=Provenance)
        if not line.startswith(_DATA):
            continue
        data = line.removeprefix(_DATA).strip()
        if data == _DONE:
            break
        chunk = decoder.decode(data)
        if chunk.error is not None:
            raise BrokenAnswerError(
                chunk.error.message or "the cluster broke the answer off", trace_id=reply.headers.get(_TRACE_HEADER)
            )
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            if choice.delta.content:
                last_s = time.monotonic() - started
                first_s = last_s if first_s is None else first_s
                pieces.append(choice.delta.content)
                on_text(choice.delta.content)
    else:
        raise BrokenAnswerError("the answer broke off before its end", trace_id=reply.headers.get(_TRACE_HEADER))
    return Answer(
        text="".join(pieces),
        finish_reason=finish,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        provenance=provenance or _from_headers(reply),
        request_id=reply.headers.get("x-request-id"),
        first_s=first_s,
        total_s=last_s,
    )


def _lines(reply: Reply) -> Iterator[bytes]:
    while line := reply.body.readline(_MAX_LINE):
        yield line.rstrip(b"\r\n")


def _from_headers(reply: Reply) -> Provenance:
    """What an answer without the `pointsman` object tells: the headers alone."""

    def number(name: str, default: int) -> int:
        value = reply.headers.get(f"x-pointsman-{name}", "")
        return int(value) if value.isdigit() else default

    return Provenance(
        model=reply.headers.get("x-pointsman-model"),
        engine=reply.headers.get("x-pointsman-engine"),
        attempts=number("attempts", 1),
        trace_id=reply.headers.get(_TRACE_HEADER),
        truncated_turns=number("truncated-turns", 0),
        truncated_tokens=number("truncated-tokens", 0),
        experts=ExpertsTold(PoolsTold(degraded="x-pointsman-degraded" in reply.headers)),
    )
