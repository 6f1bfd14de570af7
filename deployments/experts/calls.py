"""A call from any thread into the thread of a server's loop."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

CALL_S: Final = 5.0
"""Seconds that a caller waits."""


class _Call:
    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action
        self.done = threading.Event()
        self.error: Exception | None = None


class Calls:
    """Calls that wait for the loop. Whoever adds one wakes the loop, which selects on `descriptor`."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waiting: deque[_Call] = deque()
        # Taken by a signal handler, too, which may interrupt the thread that holds it.
        self._lock = threading.RLock()
        self._closed = False

    def wake(self) -> None:
        """Make the loop look; from a signal handler, too."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self.descriptor, 1)

    def call(self, action: Callable[[], None]) -> None:
        """Have the loop do it between two batches, and wait for that.

        Raises `TimeoutError` after `CALL_S`, and then it is not done any more; and what `action` raises.
        """
        call = _Call(action)
        with self._lock:
            self._waiting.append(call)
            self.wake()
        if not call.done.wait(CALL_S):
            with self._lock:
                if call in self._waiting:
                    self._waiting.remove(call)
                    raise TimeoutError(f"the pool's server did not come to it within {CALL_S:g} s")
            call.done.wait()
        if call.error is not None:
            raise call.error

    def run(self) -> None:
        """Do what waits; the loop's thread, when `descriptor` can be read."""
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return
        while True:
            with self._lock:
                if not self._waiting:
                    return
                call = self._waiting.popleft()
            try:
                call.action()
            except Exception as error:  # noqa: BLE001 - it is the caller's
                call.error = error
            call.done.set()

    def close(self) -> None:
        """The loop has ended."""
        with self._lock:
            self._closed = True
            os.close(self.descriptor)
