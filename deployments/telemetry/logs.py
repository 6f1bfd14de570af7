"""Sets up the logs of a process: every logger's lines, made safe, leave through a bounded queue to one file.

`log_safety` decides what of a record may be written, `log_format` how it looks, `log_files` how much is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, TextIO

from deployments.telemetry.log_files import BoundedLogFile
from deployments.telemetry.log_format import SafeFormatter
from deployments.telemetry.worker import BatchWorker

_QUEUE: Final = 10_000
_BATCH: Final = 500
_DELAY_S: Final = 0.1
_CLOSE_S: Final = 2.0
_FILE_BYTES: Final = 16 * 2**20
_DIRECTORY_BYTES: Final = 256 * 2**20

LIBRARIES: Final = ("vllm", "uvicorn", "uvicorn.error", "uvicorn.access", "ray", "ray.serve", "transformers")
"""Loggers that bring handlers of their own, which would write past all that is decided here."""

# These log a line for every request or batch, with its URL or its text.
_QUIET: Final = {
    "uvicorn.access": logging.CRITICAL,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "ray.serve": logging.WARNING,
    "opentelemetry": logging.ERROR,
    "asyncio": logging.WARNING,
}


class Logs:
    """The logging of one process. Made by `setup_logging`."""

    def __init__(self, file: BoundedLogFile, formatter: SafeFormatter, handler: QueueingHandler) -> None:
        self._file = file
        self._formatter = formatter
        self._handler = handler

    @property
    def path(self) -> Path:
        """The file that is written to."""
        return self._file.path

    @property
    def dropped(self) -> int:
        """Lines lost, since start: the queue was full or the file could not be written."""
        return self._handler.worker.dropped_full + self._handler.worker.dropped_failed

    def library_text(self) -> AbstractContextManager[None]:
        """While this is open, libraries' messages are written as they are: for the start of an engine only."""
        return self._formatter.library_text()

    def adopt_libraries(self, libraries: Sequence[str] = LIBRARIES) -> None:
        """Take libraries' own handlers away, so that their lines come here. Call it again after importing one."""
        for name in libraries:
            logger = logging.getLogger(name)
            for handler in tuple(logger.handlers):
                logger.removeHandler(handler)
            logger.propagate = True

    def flush(self, timeout_s: float = _CLOSE_S) -> bool:
        """Wait until everything logged so far is in the file; False if that took longer than `timeout_s` seconds."""
        return self._handler.worker.flush(timeout_s)

    def close(self) -> None:
        """Write what is queued, for at most 2 s, and detach from the root logger. Idempotent."""
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()
        self._file.close()


class QueueingHandler(logging.Handler):
    """Formats a record in the calling thread and queues the line; never blocks, never raises."""

    def __init__(self, worker: BatchWorker[str]) -> None:
        super().__init__()
        self.worker: Final = worker

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """No lock: formatting touches nothing shared, and the queue looks after itself."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of one record."""
        if line := self.format(record):
            self.worker.offer(line)

    def close(self) -> None:
        """Write what is queued, for a bounded time."""
        self.worker.close(_CLOSE_S)
        super().close()


def setup_logging(
    process: str,
    directory: Path,
    *,
    level: str = "info",
    stream: TextIO | None = None,
    file_bytes: int = _FILE_BYTES,
    directory_bytes: int = _DIRECTORY_BYTES,
) -> Logs:
    """Send everything this process logs to `<directory>/<process>-<pid>.jsonl`, and to `stream` if one is given.

    `level` is the least severe level written (`debug`, `info`, `warning`, `error`). A file holds at most `file_bytes`
    (plus the part before it), the directory `directory_bytes` beyond the files of running processes.
    """
    file = BoundedLogFile(directory, process, max_bytes=file_bytes, max_total_bytes=directory_bytes)

    def consume(lines: Sequence[str]) -> int:
        if stream is not None:
            stream.write("".join(f"{line}\n" for line in lines))
            stream.flush()
        return file.write(lines)

    worker: BatchWorker[str] = BatchWorker(
        "pointsman-logs", consume, max_queue=_QUEUE, max_batch=_BATCH, delay_s=_DELAY_S
    )
    handler = QueueingHandler(worker)
    formatter = SafeFormatter(process)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name, quiet_level in _QUIET.items():
        logging.getLogger(name).setLevel(quiet_level)
    return Logs(file, formatter, handler)
