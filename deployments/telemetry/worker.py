"""A bounded queue with one background thread: how spans and log lines leave the request path.

`offer` never blocks and never raises; what does not fit is dropped and counted. The thread sleeps while nothing
happens, so an idle process has no wake-ups.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class BatchWorker(Generic[Item]):
    """Hands items to `consume` in batches of at most `max_batch`, `delay_s` seconds after the first one came.

    `consume` runs on the worker's thread and returns how many items it could not take; what it raises counts as the
    whole batch. A process that forks gets a worker that drops everything: the thread and what it holds (database
    connections, sockets) belong to the parent.
    """

    def __init__(
        self,
        name: str,
        consume: Callable[[Sequence[Item]], int],
        *,
        max_queue: int,
        max_batch: int,
        delay_s: float,
    ) -> None:
        if max_queue < 1 or max_batch < 1 or delay_s < 0:
            raise ValueError("max_queue and max_batch must be at least 1, delay_s not negative")
        self._consume = consume
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._delay_s = delay_s
        self._queue: deque[Item] = deque()
        self._arrived = threading.Event()
        self._hurry = threading.Event()
        self._settled = threading.Condition()
        self._busy = False
        self._closing = False
        self._closed = False
        self._consumed = 0
        self._dropped_full = 0
        self._dropped_failed = 0
        self._thread = threading.Thread(name=name, target=self._run, daemon=True)
        self._thread.start()
        abandon = weakref.WeakMethod(self._abandon)
        os.register_at_fork(after_in_child=lambda: (method := abandon()) and method())

    @property
    def consumed(self) -> int:
        """Items that `consume` took, since start."""
        return self._consumed

    @property
    def dropped_full(self) -> int:
        """Items dropped because the queue was full or the worker closed, since start."""
        return self._dropped_full

    @property
    def dropped_failed(self) -> int:
        """Items that `consume` could not take, since start."""
        return self._dropped_failed

    def offer(self, item: Item) -> bool:
        """Queue one item; False if it was dropped."""
        if self._closing or len(self._queue) >= self._max_queue:
            self._dropped_full += 1
            return False
        self._queue.append(item)
        if not self._arrived.is_set():
            self._arrived.set()
        if len(self._queue) >= self._max_batch and not self._hurry.is_set():
            self._hurry.set()
        return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued so far was consumed; False if that took longer than `timeout_s` seconds."""
        if not self._thread.is_alive() or threading.current_thread() is self._thread:
            return not self._queue
        deadline = time.monotonic() + timeout_s
        with self._settled:
            while self._queue or self._busy:
                self._hurry.set()
                self._arrived.set()
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                # Short waits: an item may be taken off the queue between the check and the wait.
                self._settled.wait(min(left, 0.05))
        return True

    def close(self, timeout_s: float) -> bool:
        """Refuse new items and consume what is queued, for at most `timeout_s` seconds. Idempotent.

        Returns False if time ran out; what is left then is dropped and counted.
        """
        if self._closed:
            return True
        self._closing = True
        self._hurry.set()
        self._arrived.set()
        self._thread.join(timeout_s)
        self._closed = True
        left = len(self._queue)
        self._queue.clear()
        self._dropped_full += left
        return left == 0 and not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._arrived.wait()
            if not self._closing:
                self._hurry.wait(self._delay_s)
            self._hurry.clear()
            self._arrived.clear()
            self._drain()
            if self._closing and not self._queue:
                return

    def _drain(self) -> None:
        while self._queue and not self._closed:
            self._busy = True
            batch = [self._queue.popleft() for _ in range(min(self._max_batch, len(self._queue)))]
            try:
                failed = self._consume(batch)
            except Exception:  # noqa: BLE001 - see below
                # Whatever a consumer does, the thread must live on; the count says that something is wrong.
                failed = len(batch)
            self._dropped_failed += failed
            self._consumed += len(batch) - failed
            self._busy = False
        with self._settled:
            self._settled.notify_all()

    def _abandon(self) -> None:
        self._closing = self._closed = True
        self._queue.clear()
        self._settled = threading.Condition()
        self._arrived = threading.Event()
        self._hurry = threading.Event()
