"""A steady load of small requests, and what became of each."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

from tests.clusters import RunningCluster

CHAT = "/v1/chat/completions"


def chat(model: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    """A request body."""
    messages = [{"role": "user", "content": "Tell me something."}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **more}


@dataclass(frozen=True)
class Outcome:
    """One request. `status` is 0 for a connection that broke or took too long."""

    status: int
    began: float
    seconds: float
    attempts: int


@dataclass
class SteadyLoad:
    """Plain requests, `per_s` of them a second, each in its own thread and connection."""

    cluster: RunningCluster
    body: dict[str, Any]
    per_s: float
    timeout_s: float = 30.0
    outcomes: list[Outcome] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pacer = threading.Thread(target=self._pace)
        self._pacer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._pacer.join()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> list[Outcome]:
        """All that got no 200."""
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def _pace(self) -> None:
        while not self._over.wait(1 / self.per_s):
            thread = threading.Thread(target=self._one)
            thread.start()
            self._threads.append(thread)

    def _one(self) -> None:
        began = time.monotonic()
        status = attempts = 0
        try:
            with self.cluster.client(timeout_s=self.timeout_s) as client:
                answer = client.post(CHAT, json=self.body)
            status, attempts = answer.status_code, int(answer.headers.get("x-pointsman-attempts", 0))
        except httpx.TransportError:
            pass
        self.outcomes.append(Outcome(status, began, time.monotonic() - began, attempts))


@dataclass
class Streamed:
    """A stream read in a thread of its own."""

    cluster: RunningCluster
    body: dict[str, Any]
    timeout_s: float = 60.0
    events: list[str] = field(default_factory=list)
    ended_at: float | None = None
    broken: bool = False
    """The connection broke, or nothing came for too long."""

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    @property
    def texts(self) -> int:
        """Events with a piece of text (a count)."""
        return sum(1 for event in self.events if '"content":' in event)

    @property
    def done(self) -> bool:
        """Whether it said that it is whole."""
        return "data: [DONE]" in self.events

    @property
    def error(self) -> dict[str, Any] | None:
        """The error that ended it."""
        found = [event for event in self.events if event.startswith('data: {"error"')]
        return json.loads(found[-1][6:])["error"] if found else None

    def _read(self) -> None:
        try:
            with (
                self.cluster.client(timeout_s=self.timeout_s) as client,
                client.stream("POST", CHAT, json={**self.body, "stream": True}) as answer,
            ):
                self.events.extend(line for line in answer.iter_lines() if line)
        except httpx.TransportError:
            self.broken = True
        self.ended_at = time.monotonic()
