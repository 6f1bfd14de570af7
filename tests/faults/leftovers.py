"""What a cluster leaves behind."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path

from deployments.head.state import read_state
from loadtests.machine import Seen, cluster_processes, look_at, still_there, tree

GONE_S = 15.0


@dataclass(frozen=True)
class Family:
    """All processes of one cluster, as they were at one moment, and those that join later."""

    cluster_id: str
    head: int
    seen: frozenset[Seen]

    @classmethod
    def of(cls, state_dir: Path) -> Family:
        """The processes of the cluster that runs there."""
        state = read_state(state_dir)
        assert state is not None
        pids = tree(state.pid) | cluster_processes().get(state.cluster_id, set())
        found = frozenset(seen for seen in map(look_at, pids) if seen is not None)
        assert found
        return cls(state.cluster_id, state.pid, found)

    def left(self) -> list[str]:
        """Those that still run, by what `ps` shows."""
        late = {look_at(pid) for pid in cluster_processes().get(self.cluster_id, set())}
        return [f"{seen.pid} {seen.title}" for seen in {*self.seen, *late} if seen is not None and still_there(seen)]


def wait_until_gone(family: Family, timeout_s: float = GONE_S) -> float:
    """Seconds until no process is left. Fails naming those that are."""
    began = time.monotonic()
    while left := family.left():
        assert time.monotonic() - began < timeout_s, left
        time.sleep(0.1)
    return time.monotonic() - began


def assert_port_free(port: int) -> None:
    """Somebody else can listen there."""
    with socket.socket() as probe:
        # As every server does: connections that have ended just now are in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
