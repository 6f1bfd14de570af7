"""SIGTERM and a closed terminal end a command as Ctrl-C does: what it started is brought down first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from deployments.cli.errors import StopRequested


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within this block SIGTERM and SIGHUP raise `StopRequested`."""

    def request(_number: int, _frame: FrameType | None) -> None:
        raise StopRequested

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
