"""Gathers the texts of concurrent requests into batches for one worker thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Vectors: TypeAlias = npt.NDArray[np.float32]
"""One row per text."""

Encode: TypeAlias = Callable[[list[str]], tuple[Vectors, Sequence[int]]]
"""Vectors and token counts of some texts; runs on the worker thread."""


class QueueFullError(RuntimeError):
    """As many texts wait as may."""


class _Job:
    """One request's texts."""

    def __init__(self, texts: Sequence[str], future: asyncio.Future[tuple[Vectors, list[int]]]) -> None:
        self.future = future
        self.started = False
        self._rows: list[Vectors | None] = [None] * len(texts)
        self._counts = [0] * len(texts)
        self._missing = len(texts)

    def take(self, index: int, vector: Vectors, tokens: int) -> None:
        """One text is done; the last one ends the job."""
        self._rows[index], self._counts[index] = vector, tokens
        self._missing -= 1
        if not self._missing and not self.future.done():
            self.future.set_result((np.stack([row for row in self._rows if row is not None]), self._counts))

    def fail(self, error: Exception) -> None:
        """None of it will be done."""
        if not self.future.done():
            self.future.set_exception(error)


class MicroBatcher:
    """Runs `encode` on one thread, on up to `max_batch` texts at once: whatever is waiting when the thread is free.

    At most `max_queued` texts wait. What is cancelled leaves the queue.
    """

    def __init__(self, encode: Encode, max_batch: int, max_queued: int, pool: ThreadPoolExecutor) -> None:
        self._encode = encode
        self._max_batch = max_batch
        self._max_queued = max_queued
        self._pool = pool
        self._queue: deque[tuple[_Job, int, str]] = deque()
        self._jobs: set[_Job] = set()
        self._work: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        """Requests of which some text is done or being worked on."""
        return sum(job.started for job in self._jobs)

    @property
    def waiting(self) -> int:
        """Requests of which no text has been begun."""
        return len(self._jobs) - self.running

    async def submit(self, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        """Vectors (one row per text) and token counts. Raises `QueueFullError`, or what `encode` raised."""
        if len(self._queue) + len(texts) > self._max_queued:
            raise QueueFullError(f"more than {self._max_queued} texts would wait")
        loop = asyncio.get_running_loop()
        job = _Job(texts, loop.create_future())
        self._jobs.add(job)
        self._queue.extend((job, index, text) for index, text in enumerate(texts))
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._run())
        try:
            return await job.future
        finally:
            self._jobs.discard(job)
            if job.future.cancelled():
                self._queue = deque(item for item in self._queue if item[0] is not job)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            # One turn of the loop: requests that arrived together go together.
            await asyncio.sleep(0)
            batch = [self._queue.popleft() for _ in range(min(self._max_batch, len(self._queue)))]
            batch = [item for item in batch if not item[0].future.done()]
            if not batch:
                continue
            for job, _, _ in batch:
                job.started = True
            try:
                vectors, counts = await loop.run_in_executor(self._pool, self._encode, [text for _, _, text in batch])
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to these requests alone
                for job, _, _ in batch:
                    job.fail(error)
                continue
            for (job, index, _), vector, tokens in zip(batch, vectors, counts, strict=True):
                job.take(index, vector, int(tokens))

    async def close(self) -> None:
        """Fail what waits."""
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        for job in list(self._jobs):
            job.future.cancel()
        self._queue.clear()
