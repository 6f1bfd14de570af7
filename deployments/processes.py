"""Processes that never outlive their owner, and how to find those of one cluster.

Every process of a cluster inherits `POINTSMAN_CLUSTER_ID`, so all of them can be found in /proc however they were
re-parented. Engine processes also die with their replica: the kernel sends them SIGKILL when it goes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

CLUSTER_VARIABLE = "POINTSMAN_CLUSTER_ID"
OWNER_VARIABLE = "POINTSMAN_OWNER_PID"
CORES_VARIABLE = "POINTSMAN_CPU_CORES"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def die_with_parent(owner: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies; end at once if it is already gone.

    `owner` is the process id that the parent should have. It closes the gap between the fork and this call.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        os.kill(os.getpid(), signal.SIGKILL)


def tie_to_owner() -> bool:
    """Die with the process that `POINTSMAN_OWNER_PID` names, and own what this process starts in turn.

    So a chain dies from its first link to its last: a replica, its engine core, and the workers that the core starts
    where a model is spread over several devices. Returns False, and does nothing, in the owner itself and where no owner
    is named. Raises `OSError` if the kernel refuses.
    """
    owner = os.environ.get(OWNER_VARIABLE)
    if owner is None or int(owner) == os.getpid():
        return False
    die_with_parent(int(owner))
    os.environ[OWNER_VARIABLE] = str(os.getpid())
    return True


def bind_to_cores() -> None:
    """Bind this thread, and all that it starts, to the cores that `POINTSMAN_CPU_CORES` lists; nothing if it is not set.

    Raises `OSError` for cores that this process may not use.
    """
    listed = os.environ.get(CORES_VARIABLE)
    if listed is not None:
        os.sched_setaffinity(0, {int(core) for core in listed.split(",")})


def stopped_below(pids: Iterable[int]) -> int | None:
    """A process among `pids` and their children, at any depth, that was stopped by a signal; None if there is none.

    Looks at every process of the machine: milliseconds, so not for an event loop.
    """
    left = list(pids)
    if not left:
        return None
    children: dict[int | None, list[int]] = {}
    for pid in _all_pids():
        children.setdefault(parent_of(pid), []).append(pid)
    while left:
        pid = left.pop()
        if process_state(pid) in {"T", "t"}:
            return pid
        left.extend(children.get(pid, ()))
    return None


def adopt_orphans() -> None:
    """Make this process the one that orphaned descendants are re-parented to, instead of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def processes_of(cluster_id: str) -> tuple[int, ...]:
    """Process ids of all live (not zombie) processes of a cluster, this one excepted."""
    wanted = f"{CLUSTER_VARIABLE}={cluster_id}".encode()
    found = []
    for pid in _all_pids():
        if pid == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and process_state(pid) not in {"Z", "X", None}:
            found.append(pid)
    return tuple(found)


def session_of(pid: int) -> int | None:
    """The session that a process belongs to, named by its leader's process id; None if the process is gone."""
    fields = _stat_fields(pid)
    return int(fields[3]) if fields else None


def processes_in_session(session: int) -> tuple[int, ...]:
    """Process ids of all live processes of a session, its leader and this process excepted."""
    pids = (pid for pid in _all_pids() if pid not in (session, os.getpid()) and session_of(pid) == session)
    return tuple(pid for pid in pids if process_state(pid) not in {"Z", "X", None})


def process_state(pid: int) -> str | None:
    """The kernel's one-letter state (`R`, `S`, `D`, `T`, `Z` ...), or None if the process is gone."""
    fields = _stat_fields(pid)
    return fields[0] if fields else None


def cpu_ticks(pid: int) -> int | None:
    """User plus system time in clock ticks, all threads; None if the process is gone."""
    fields = _stat_fields(pid)
    return int(fields[11]) + int(fields[12]) if fields else None


def parent_of(pid: int) -> int | None:
    """The parent's process id, or None if the process is gone."""
    fields = _stat_fields(pid)
    return int(fields[1]) if fields else None


def proportional_memory(pids: Iterable[int]) -> int:
    """Sum of the proportional set sizes (PSS) in bytes: shared pages count once across the processes sharing them."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def kill_all(pids: Iterable[int], grace_s: float) -> tuple[int, ...]:
    """SIGTERM, then after `grace_s` seconds SIGKILL for what is left. Returns those that had to be killed."""
    alive = {pid for pid in pids if _signal(pid, signal.SIGTERM)}
    deadline = time.monotonic() + grace_s
    while alive and time.monotonic() < deadline:
        time.sleep(0.05)
        alive = {pid for pid in alive if process_state(pid) not in {"Z", "X", None}}
    killed = tuple(sorted(pid for pid in alive if _signal(pid, signal.SIGKILL)))
    deadline = time.monotonic() + 5.0
    while any(process_state(pid) not in {"Z", "X", None} for pid in killed) and time.monotonic() < deadline:
        time.sleep(0.02)
    return killed


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command name is in parentheses and may hold spaces; everything of interest comes after it.
    return text[text.rindex(")") + 2 :].split()


def _all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
