"""What a request passes on its way in: its key, the key's limits, and the count of what it uses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from cluster import limits
from cluster.config.cluster import ClusterConfig
from cluster.keys import KeyRecord, Rejection, unauthorized, verify
from deployments.access.keys_file import KeysFile, LiveKeys
from deployments.access.limiter import Admission, KeyLimiter
from deployments.access.usage import KeyUsage, UsageBook
from deployments.engines.protocol import TokenUsage
from deployments.paths import usage_path

_log = logging.getLogger(__name__)

REFRESH_S: Final = 0.25
"""Seconds between two looks at the keys file: a revoked key is refused this soon."""

FLUSH_S: Final = 2.0
"""Seconds between two writes of usage; what a killed process had not written yet is lost."""

_NO_KEY: Final = frozenset({Rejection.MISSING, Rejection.MALFORMED})


class AdmittedRequest:
    """One request inside the gate."""

    def __init__(self, admission: Admission, key: KeyRecord | None, book: UsageBook) -> None:
        self._admission = admission
        self._key = key
        self._book = book

    @property
    def headers(self) -> Mapping[str, str]:
        """`x-ratelimit-*` headers for the response."""
        return self._admission.headers

    def spent(self, usage: TokenUsage) -> None:
        """Note what the request used, once it is known."""
        self._admission.used = usage.prompt_tokens + usage.completion_tokens
        if self._key is not None:
            spent = KeyUsage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)
            self._book.add(self._key.id, spent)


class Gate:
    """The access layer of one ingress. Limits hold per ingress process; usage is added up over all of them."""

    def __init__(self, config: ClusterConfig, state_dir: Path) -> None:
        """Raises `KeysFileError` for a keys file that cannot be read."""
        self._required = config.keys_required
        self._live = LiveKeys(KeysFile(config.keys_path(state_dir)))
        self._limiter = KeyLimiter()
        self._book = UsageBook(usage_path(state_dir))
        self._reading: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to follow the keys file and to write usage."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follow_keys()), loop.create_task(self._write_usage())]

    async def stop(self) -> None:
        """Write what is left. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if tasks:
            await asyncio.to_thread(self._book.flush)

    def authenticate(self, authorization: Sequence[str]) -> KeyRecord | None:
        """The key of a request, given the values of all its `Authorization` headers. Raises `ApiError` 401.

        Where no keys are asked for, a request without one is anonymous (None), and so is one with whatever else clients
        send for want of a key; a key of this cluster still counts, and a revoked one is refused.
        """
        found = verify(authorization, self._live.records)
        if isinstance(found, KeyRecord):
            return found
        if not self._required and found in _NO_KEY:
            return None
        _log.info("refused a key", extra={"error_type": found.name.lower()})
        raise unauthorized(found)

    @contextmanager
    def reading(self, key: KeyRecord | None) -> Iterator[None]:
        """Hold one of a key's requests at once while its body is read. Raises `ApiError` 429 if all are held.

        What a request will use is known from its body alone; without this, one key could hold the places of all others
        with bodies that never come.
        """
        if key is None or key.limits.concurrency is None:
            yield
            return
        held = self._reading[key.id]
        if held + self._limiter.running(key.id) >= key.limits.concurrency:
            raise limits.refused(limits.too_many_at_once(key.limits.concurrency))
        self._reading[key.id] += 1
        try:
            yield
        finally:
            self._reading[key.id] -= 1
            if not self._reading[key.id]:
                del self._reading[key.id]

    @asynccontextmanager
    async def admit(self, key: KeyRecord | None, tokens: int) -> AsyncIterator[AdmittedRequest]:
        """Hold a place for a request that will use about `tokens` tokens. Raises `ApiError` 429 if there is none."""
        async with self._limiter.admit(key, tokens) as admission:
            if key is not None:
                self._book.add(key.id, KeyUsage(requests=1))
            yield AdmittedRequest(admission, key, self._book)

    def refused(self, key: KeyRecord | None) -> None:
        """Count a request that got an error, be it in place of an answer or at the end of one that broke."""
        if key is not None:
            self._book.add(key.id, KeyUsage(rejected=1))

    def usage_of(self, key: KeyRecord) -> dict[str, str | int | float]:
        """What a key has used, ready to be shown to its holder."""
        return {"key_id": key.id, "name": key.name, **asdict(self._book.of(key.id))}

    async def _follow_keys(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            if self._live.changed():
                await asyncio.to_thread(self._live.refresh)

    async def _write_usage(self) -> None:
        while True:
            await asyncio.to_thread(self._book.flush)
            await asyncio.sleep(FLUSH_S)
