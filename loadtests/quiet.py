"""Before a run: the machine must be idle, or the run measures something else as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from loadtests.machine import busiest, cores_used, machine_cores_used

IDLE_CORES: Final = 0.35
"""An arm that takes less than this is idle. An idle vLLM engine takes about 0.03 cores, and a cluster has several of
them, a controller and an ingress; a single request in flight takes a whole core."""
QUIET_CORES: Final = 0.5
"""The whole machine, both resident arms included, when nobody asks them anything."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """What was running in the second before a run."""

    resting_cores: float
    """Cores that the other arm took."""
    machine_cores: float
    """Cores that the whole machine took."""

    @property
    def resting(self) -> bool:
        """Whether the other arm was idle and so was the machine."""
        return self.resting_cores <= IDLE_CORES and self.machine_cores <= QUIET_CORES


def wait_until_quiet(
    resting: Iterable[int], patience_s: float, say: Callable[[str], None], window_s: float = 1.0
) -> Quiet:
    """Wait until the processes `resting` and the machine are idle; after `patience_s` warn, with who is not."""
    pids = list(resting)
    deadline = time.monotonic() + patience_s
    while True:
        before = time.monotonic()
        machine = machine_cores_used(window_s)
        now = Quiet(cores_used(pids, window_s) if pids else 0.0, machine)
        if now.resting:
            return now
        if time.monotonic() + (time.monotonic() - before) > deadline:
            top = ", ".join(f"{seen.pid} {seen.title[:48]!r} {cores:.2f}" for seen, cores in busiest(window_s, 4))
            say(
                f"not quiet: the resting arm takes {now.resting_cores:.2f} cores, the machine {now.machine_cores:.2f}; "
                f"busiest (pid, title, cores): {top}"
            )
            return now
