"""Ends a cluster so that nothing of it is left, whatever state it is in."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deployments.cli.errors import CliError
from deployments.cli.members import members_of
from deployments.head.state import TEMPORARY_PREFIX, ClusterState, read_state, remove_state
from deployments.processes import kill_all, process_state

POLL_S = 0.1
STOP_TIMEOUT_S = 60.0
"""Seconds that every cluster is given to stop by itself."""
SWEEP_GRACE_S = 3.0
SWEEP_ROUNDS = 5

OnWait = Callable[[str], None]
"""Called again and again with what is being waited for."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """How it went."""

    seconds: float
    head_killed: bool
    """The head did not end by itself in time."""
    swept: int
    """Processes that the head had left behind and that were ended one by one."""


def stop_limit(state: ClusterState) -> float:
    """Seconds after which a cluster that does not stop by itself is ended by force."""
    return max(STOP_TIMEOUT_S, state.stop_s + SWEEP_GRACE_S * SWEEP_ROUNDS)


def stop_cluster(
    state_dir: Path, head: int, cluster_id: str | None, timeout_s: float, on_wait: OnWait, *, head_runs: bool = True
) -> Stopped:
    """End the head process `head` (gone already unless `head_runs`) and then every process of the cluster.

    The head gets SIGTERM and `timeout_s` seconds, then SIGKILL. Raises `CliError` if something cannot be ended.
    """
    started = time.monotonic()
    killed = False
    if head_runs and _alive(head):
        _send(head, signal.SIGTERM)
        while _alive(head) and time.monotonic() - started < timeout_s:
            on_wait(_left(cluster_id, head))
            time.sleep(POLL_S)
        if _alive(head):
            killed = True
            on_wait("the head process does not end by itself; ending it")
            kill_all([head], 0.0)
    state = _state_of(state_dir, head)
    cluster_id = cluster_id or (state.cluster_id if state is not None else None)
    swept = _sweep(cluster_id, head, on_wait) if cluster_id is not None else 0
    if state is not None:
        _remove_temporary(state)
    if killed or not head_runs:
        remove_state(state_dir)
    return Stopped(time.monotonic() - started, killed, swept)


def _sweep(cluster_id: str, head: int, on_wait: OnWait) -> int:
    ended = 0
    for _ in range(SWEEP_ROUNDS):
        pids = members_of(cluster_id, head)
        if not pids:
            return ended
        on_wait(f"ending {_processes(len(pids))} left behind")
        kill_all(pids, SWEEP_GRACE_S)
        ended += len(pids)
    pids = members_of(cluster_id, head)
    if pids:
        raise CliError(
            f"{_processes(len(pids))} of the cluster cannot be ended: {', '.join(map(str, pids))}",
            "They may belong to another user, or hang in the kernel: look at them with `ps -fp PID`.",
        )
    return ended


def _left(cluster_id: str | None, head: int) -> str:
    count = len(members_of(cluster_id, head)) if cluster_id is not None else 0
    return f"{_processes(count)} left" if count else "the head process is ending"


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


def _state_of(state_dir: Path, head: int) -> ClusterState | None:
    """What the head left behind; None if it ended in order."""
    state = read_state(state_dir)
    return state if state is not None and state.pid == head else None


def _remove_temporary(state: ClusterState) -> None:
    """Ray's directory, which only a head that ends in order removes. Nothing runs in it any more."""
    path = Path(state.ray_temp_dir)
    # What a file names is removed only if it looks like what a head makes.
    if path.is_absolute() and path.name.startswith(TEMPORARY_PREFIX) and path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    # A child of this process that has ended is a zombie until it is waited for, and gone for our purposes.
    return process_state(pid) not in {"Z", "X", None}


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise CliError(
            f"process {pid} belongs to another user", "Run this command as the user who started the cluster."
        ) from None
