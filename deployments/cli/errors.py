"""What ends a command other than success."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit statuses, the same for every command."""

    OK = 0
    FAILED = 1
    """It was tried and did not work."""
    USAGE = 2
    """The arguments or the config are wrong; nothing was tried."""
    REFUSED = 3
    """Not now: no cluster is running, or one is in the way."""
    INTERRUPTED = 130
    """Ctrl-C."""


class CliError(Exception):
    """Ends a command. `message` says what is wrong, `remedy` what to do next; neither ever holds a key."""

    def __init__(self, message: str, remedy: str | None = None, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code


class StopRequested(KeyboardInterrupt):
    """A signal other than Ctrl-C asks this process to end; handled as if it were Ctrl-C."""
