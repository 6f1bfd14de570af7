"""`python -m loadtests.guard OWNER COMMAND...`: run a command that must not outlive its owner, nor leave children.

A server that is killed leaves its engine process behind, with its memory and its core. This small process stands
between: it adopts whatever is orphaned below it, and ends all of it when the command ends, when it is told to stop, or
when its owner is gone, however that happened.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Final

from deployments.processes import adopt_orphans, kill_all
from loadtests.machine import tree

_EVERY_S: Final = 0.5
_GRACE_S: Final = 10.0


def guard(owner: int, command: list[str]) -> int:
    """Run until one of the three; returns the exit code of the command."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    adopt_orphans()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while child.poll() is None and not stopped and os.getppid() == owner:
        time.sleep(_EVERY_S)
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
    kill_all(tree(os.getpid()) - {os.getpid()}, grace_s=1.0)
    return child.wait()


def main() -> int:
    """The command line."""
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        sys.stderr.write("usage: python -m loadtests.guard OWNER_PID COMMAND...\n")
        return 2
    return guard(int(sys.argv[1]), sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
