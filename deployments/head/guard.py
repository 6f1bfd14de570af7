"""Ends what a head process leaves behind when it is killed: a process that waits for the head's end, and nothing else.

Ray ends its own processes when its driver dies, but not all of them: its agents stay, and since they change their titles,
the cluster's marker is no longer in their environment. They are found by their session, which is the head's. The guard
holds the read end of a pipe whose write end only the head has, so the kernel tells it of the head's end, whatever the
head dies of.
"""

from __future__ import annotations

import os
import subprocess
import sys

from deployments.processes import kill_all, processes_in_session, processes_of

GRACE_S = 1.0
ROUNDS = 10
"""A process may start another one while it is being ended."""

CLOSE_TIMEOUT_S = 15.0


class Guard:
    """The head's end of it."""

    def __init__(self, cluster_id: str) -> None:
        """Start the guard. It inherits the cluster's marker, which must be in the environment by now."""
        # Only a session of the head's own is the cluster's: a head started by hand shares that of a terminal.
        session = os.getpid() if os.getsid(0) == os.getpid() else 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, cluster_id, str(session)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """Have it end what is left now, and then itself."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> int:
    """Wait for the head's end, then end every other process of the cluster."""
    cluster_id, session = sys.argv[1], int(sys.argv[2])
    sys.stdin.buffer.read()
    for _ in range(ROUNDS):
        left = {*processes_of(cluster_id), *(processes_in_session(session) if session else ())}
        if not left:
            return 0
        kill_all(left, GRACE_S)
    return 1


if __name__ == "__main__":
    sys.exit(main())
