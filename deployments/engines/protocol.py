"""The one protocol that every engine speaks, and the typed messages that cross it.

A replica owns exactly one engine. It hands the engine validated OpenAI request bodies and gets OpenAI responses back:
a JSON body for plain requests, encoded server-sent events through `emit` for streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import msgspec

from cluster.api.json_body import JsonObject
from cluster.experts.load import ExpertLoad, ExpertUse
from cluster.experts.pool_use import PoolUse
from cluster.routing.confidence import TokenConfidence
from deployments.engines.kv_precision import KvSwitch, KvUse

Emit = Callable[[bytes], None]
"""Takes one or more whole server-sent events, encoded (`data: {...}\\n\\n`). Never blocks, never raises.

The closing `data: [DONE]` is not among them: the ingress writes it once the reply says that the answer is whole.
"""


_JUDGED = b": judged "


def judged_event(confidence: TokenConfidence) -> bytes:
    """An event for the ingress alone, a comment by the rules of server-sent events: how sure the model was so far.

    A model's own text cannot be taken for one: it stands inside the JSON of a data line, which holds no line ends.
    """
    return _JUDGED + msgspec.json.encode(confidence) + b"\n\n"


def split_judged(data: bytes) -> tuple[bytes, TokenConfidence | None]:
    """Events without the one of `judged_event`, and what it said; None if it is not among them."""
    start = 0 if data.startswith(_JUDGED) else data.find(b"\n\n" + _JUDGED) + 2
    if start == 1:
        return data, None
    end = data.index(b"\n\n", start)
    told = msgspec.json.decode(data[start + len(_JUDGED) : end], type=TokenConfidence)
    return data[:start] + data[end + 2 :], told


class Endpoint(StrEnum):
    """Which OpenAI endpoint a request came in on."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request for one engine. `body["stream"]` says whether events go through `emit`."""

    request_id: str
    endpoint: Endpoint
    body: JsonObject
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    """W3C trace context (`traceparent`, `tracestate`) of the span that the engine's own span is a child of."""
    tenant: str = ""
    """Whose request it is. Cached prompts are shared within a tenant, never between two; empty: no key was shown."""
    max_prompt_tokens: int | None = None
    """Tokens that the prompt may have by its contract, for engines that count them; None: what the model holds."""
    judge: bool = False
    """Whether the reply is to say how sure the model was of its tokens."""
    judge_tokens: int | None = None
    """For a stream: tokens after which an event of `judged_event` is to say so ahead of the end; None: never."""
    traffic: str = ""
    """What kind of traffic it is, a word out of a few; the load of experts is told by it. Empty: not known."""
    log_experts: int = 0
    """Tokens per sequence whose experts the reply is to list, at most; 0: none."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Token counts of one finished request. `truncated_turns` and `truncated_tokens` left by the sliding window."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    truncated_turns: int = 0
    truncated_tokens: int = 0

    @property
    def total(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class EngineReply:
    """How a request ended.

    An engine emits no error events: an answer that breaks off comes back as a 5xx with an OpenAI error body.

    Plain request: `status` and the JSON `body`. Stream: `status` 200 and an empty body once all events were emitted;
    a request refused before its first event has the error's status and its OpenAI error body.
    """

    status: int
    body: bytes = b""
    usage: TokenUsage = TokenUsage()
    finish_reason: str | None = None
    retry_after_s: int | None = None
    """Seconds after which a request refused with 429 or 503 may be sent again; None: the engine does not know."""
    confidence: TokenConfidence | None = None
    """How sure the model was of its tokens; None: it was not asked, or the engine cannot tell."""
    kv: KvUse = field(default_factory=KvUse)
    """What it met in the KV cache."""
    experts: ExpertUse | None = None
    """Which experts it used; None: the model has none, or the engine does not tell."""
    pools: PoolUse | None = None
    """What pools of experts did for it; None: the engine has no pools, or no token of it went to one."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine knows about itself, cheap enough to read four times a second."""

    running: int = 0
    """Requests in the running batch."""
    waiting: int = 0
    """Requests queued inside the engine."""
    kv_usage: float = 0.0
    """Fraction of KV blocks in use, 0 to 1."""
    kv_blocks: int = 0
    """KV blocks in the pool."""
    kv_block_tokens: int = 0
    """Tokens that a block holds."""
    kv_precision: str = ""
    """Number format of the KV cache, for example `bfloat16`; empty: the engine has none."""
    kv_switches: int = 0
    """Changes of that format since start."""
    kv_evictions: int = 0
    """KV blocks that were used anew, since start."""
    kv_lifetime_s: float = 0.0
    """Seconds for which these had held what was in them, added up."""
    preemptions: int = 0
    """Preemptions for want of KV blocks, since start."""
    forced_preemptions: int = 0
    """Preemptions by changes of KV precision, since start."""
    recomputed_tokens: int = 0
    """Tokens whose KV was computed again after a preemption of either kind, since start."""
    prefix_queries: int = 0
    """Tokens looked up in the prefix cache since start."""
    prefix_hits: int = 0
    """Of these, tokens found."""
    prompt_tokens: int = 0
    """Prompt tokens processed since start."""
    generated_tokens: int = 0
    """Tokens generated since start."""
    prefill_tokens_per_s: float = 0.0
    """The fastest that a prompt was seen to be read; 0: none was yet."""


class EngineDeadError(RuntimeError):
    """The engine cannot serve any more; its owner must end and be replaced."""


class EngineStartError(RuntimeError):
    """The engine could not start. The message names the model, the cause and a remedy."""

    log_safe = True
    """No request exists yet whose text it could hold, so logs may show it."""


class Engine(Protocol):
    """An engine as a replica sees it. All coroutines run on the replica's event loop and never block it."""

    kind: str
    """`vllm`, `simulated`, `encoder` or `external`; shown in `/v1/models`, responses and reports."""

    @property
    def weights(self) -> str:
        """Number format of the model's weights, for example `int8`; empty: not known. Known once it has started."""

    @property
    def sampling_defaults(self) -> tuple[float, float]:
        """Temperature and top-p that it samples with where a request leaves them open. Known once it has started."""

    @property
    def kv_precisions(self) -> tuple[str, ...]:
        """KV precisions that it can change to while it runs, `auto` for the model's own; empty: it cannot change.

        Known once it has started.
        """

    @property
    def kv_blockers(self) -> tuple[str, ...]:
        """Why it cannot change, each by name; empty: it can."""

    async def start(self) -> None:
        """Load the model. Raises `EngineStartError`."""

    async def run(self, request: EngineRequest, emit: Emit) -> EngineReply:
        """Serve one request to its end. Cancelling the awaiting task frees all that the request holds.

        Raises `EngineDeadError` if the engine died; anything a user can cause comes back as an `EngineReply` with a
        4xx status.
        """

    async def set_kv_precision(self, precision: str) -> KvSwitch:
        """Change the KV precision; requests under way are kept, and computed again.

        Raises `KvPrecisionError` if nothing has changed, and `EngineDeadError` if the engine ended over it.
        """

    @property
    def expert_blockers(self) -> tuple[str, ...]:
        """Why it does not tell which experts its tokens go to, each by name; empty: it tells. Known once it has started."""

    def expert_load(self) -> ExpertLoad | None:
        """Tokens by expert as of the last heartbeat; never blocks. None: it does not tell."""

    def stats(self) -> EngineStats:
        """A snapshot; never blocks."""

    async def heartbeat(self) -> None:
        """Returns once the engine has answered; raises `EngineDeadError` if it is dead. The caller sets the deadline."""

    def pids(self) -> tuple[int, ...]:
        """Process ids of the engine's own child processes, empty when it runs in this process."""

    async def close(self) -> None:
        """Free everything, child processes included. Idempotent."""
