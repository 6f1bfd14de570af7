"""What became of one request of the pressure scenario: from what arrived on the wire to a verdict on its latency target."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from cluster.routing.latency_class import LatencyClass
from loadtests.client import Exchange
from loadtests.events import record_of
from loadtests.pressure_workload import CLASSES, Turn

_COMMENT: Final = b": pointsman "
NOT_MEMORY: Final = ("shed", "saturated", "timeout")
"""Codes of failures that say how busy a cluster is. Any other 5xx counts as an error of memory."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. Times are seconds; `at_s` is after the run's beginning, the others after `at_s`."""

    number: int
    at_s: float
    latency_class: LatencyClass
    critical: bool
    status: int
    code: str | None
    """Why there is no whole answer: the error's code, or what happened to the connection; None: there is one."""
    ttft_s: float | None
    total_s: float
    prompt_tokens: int
    asked_tokens: int
    completion_tokens: int
    arrivals: tuple[tuple[float, int], ...] = ()
    """When text arrived, seconds after the run's beginning, and how many tokens."""
    model: str | None = None
    """Who answered."""
    level: int = 0
    """Of the model's ladder when the request came."""
    changed: tuple[str, ...] = ()
    """What the level changed of it."""
    switches: int = 0
    """Changes of the KV precision that it lived through."""
    preemptions: int = 0
    """Times that it was preempted."""

    @property
    def in_target(self) -> bool:
        """Whether the answer is whole and kept the latency target of its class."""
        terms = CLASSES[self.latency_class]
        begins = terms.ttft_s is None or (self.ttft_s is not None and self.ttft_s <= terms.ttft_s)
        return self.code is None and begins and self.total_s <= terms.total_s

    @property
    def is_shortened(self) -> bool:
        """Whether it is whole, with fewer tokens than were asked for."""
        return self.code is None and self.completion_tokens < self.asked_tokens

    @property
    def is_memory_error(self) -> bool:
        """Whether the server failed for another reason than that it is busy."""
        return self.code is not None and (self.status == 200 or self.status >= 500) and self.code not in NOT_MEMORY


def outcome_of(turn: Turn, exchange: Exchange, began: float) -> Outcome:
    """The outcome of a request whose run began at `began` on the clock of the exchange.

    Times count from when the request was due, so a client that is late does not make the server look faster.
    """
    record = record_of(exchange)
    told = _told(exchange)
    due = began + turn.at_s
    at, arrivals = exchange.started - began, []
    for arrival in record.arrivals:
        at += arrival.gap_s
        arrivals.append((at, arrival.tokens))
    level, kv = told.get("level") or {}, told.get("kv") or {}
    return Outcome(
        number=turn.number,
        at_s=turn.at_s,
        latency_class=turn.latency_class,
        critical=turn.critical,
        status=record.status,
        code=None if record.error is None else _error_code(exchange) or record.error,
        ttft_s=None if record.ttft_s is None else record.started_s + record.ttft_s - due,
        total_s=record.ended_s - due,
        prompt_tokens=record.prompt_tokens or turn.prompt_tokens,
        asked_tokens=turn.max_tokens,
        completion_tokens=record.completion_tokens,
        arrivals=tuple(arrivals),
        model=told.get("model"),
        level=int(level.get("number", 0)),
        changed=tuple(level.get("changed", ())),
        switches=int(kv.get("switches", 0)),
        preemptions=int(kv.get("preemptions", 0)),
    )


def _lines(exchange: Exchange) -> list[bytes]:
    return b"".join(data for _, data in exchange.arrivals).replace(b"\r\n", b"\n").split(b"\n")


def _told(exchange: Exchange) -> dict[str, Any]:
    """The `pointsman` object at the end of a stream; empty if none came."""
    found = next((line for line in reversed(_lines(exchange)) if line.startswith(_COMMENT)), None)
    return {} if found is None else _object(found.removeprefix(_COMMENT))


def _error_code(exchange: Exchange) -> str | None:
    """The code in the error that was answered, as a body or as the last event of a stream."""
    for line in reversed(_lines(exchange)):
        error = _object(line.removeprefix(b"data:").strip()).get("error")
        if isinstance(error, dict):
            return str(error.get("code") or error.get("type") or "error")
    return None


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
