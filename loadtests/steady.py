"""Open-loop load: plain requests at a steady rate, whatever becomes of those before."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import httpx

MAX_IN_FLIGHT: Final = 1000
"""Requests at a time; beyond it the load waits, so that a cluster that stands still is not buried."""

PROMPT: Final = "Tell me something."
"""The same for all: what is measured is what becomes of requests, so a prompt costs as little as can be, its prefix being cached."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request."""

    status: int
    """HTTP status; 0 for a connection that broke or an answer that did not come in time."""
    began_s: float
    """Seconds after the load began."""
    seconds: float
    attempts: int
    """Times that the ingress sent it to a replica, as its header says; 0 without one."""
    whole: bool
    """Status 200, and a choice that ended because the model was done or had its tokens."""
    problem: str = ""


class SteadyLoad:
    """Sends `per_s` requests a second from entry to exit; the exit waits for those under way."""

    def __init__(
        self, client: httpx.AsyncClient, model: str, per_s: float, max_tokens: int, timeout_s: float = 60.0
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._client = client
        self._model = model
        self._pause_s = 1.0 / per_s
        self._max_tokens = max_tokens
        self._timeout_s = timeout_s
        self._running: set[asyncio.Task[None]] = set()
        self._began = time.monotonic()

    async def __aenter__(self) -> Self:
        self._began = time.monotonic()
        self._pacer = asyncio.create_task(self._pace())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._pacer.cancel()
        await asyncio.gather(self._pacer, *self._running, return_exceptions=True)

    async def _pace(self) -> None:
        number = 0
        while True:
            due = self._began + number * self._pause_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(self._running) < MAX_IN_FLIGHT:
                task = asyncio.create_task(self._one())
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            number += 1

    async def _one(self) -> None:
        began = time.monotonic()
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": self._max_tokens,
            "temperature": 0,
        }
        status = attempts = 0
        whole, problem = False, ""
        try:
            answer = await self._client.post("/v1/chat/completions", json=body, timeout=self._timeout_s)
            status, attempts = answer.status_code, int(answer.headers.get("x-pointsman-attempts", 0))
            found = answer.json()
            whole = status == 200 and found["choices"][0]["finish_reason"] in ("stop", "length")
            problem = "" if whole else str(found.get("error", {}).get("code", "not whole"))
        except (httpx.HTTPError, ValueError, LookupError) as error:
            problem = type(error).__name__
        self.outcomes.append(Outcome(status, began - self._began, time.monotonic() - began, attempts, whole, problem))
