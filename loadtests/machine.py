"""What runs on this machine: process trees, their CPU time and memory, and engines that nobody owns."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments.processes import CLUSTER_VARIABLE, cpu_ticks, parent_of, process_state

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_ENGINE: Final = re.compile(r"VLLM::|vllm\.entrypoints|^ray::|raylet|gcs_server|deployments\.cli")
_TITLE_LENGTH: Final = 240


@dataclass(frozen=True, slots=True)
class Seen:
    """A process, told apart from a later one with the same id by when it started."""

    pid: int
    started_ticks: int
    title: str


def all_pids() -> list[int]:
    """Ids of all processes."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def look_at(pid: int) -> Seen | None:
    """The process with this id; None if it is gone or only its exit status is left."""
    if process_state(pid) in {"Z", "X", None}:
        return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    return Seen(pid, int(stat[stat.rindex(")") + 2 :].split()[19]), title[:_TITLE_LENGTH])


def still_there(seen: Seen) -> bool:
    """Whether that very process still runs."""
    now = look_at(seen.pid)
    return now is not None and now.started_ticks == seen.started_ticks


def tree(root: int) -> set[int]:
    """A process and all its descendants."""
    parents = {pid: parent_of(pid) for pid in all_pids()}
    found = {root} if root in parents else set()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def cluster_processes() -> dict[str, set[int]]:
    """Processes that carry a cluster's marker, by cluster id."""
    found: dict[str, set[int]] = {}
    prefix = f"{CLUSTER_VARIABLE}=".encode()
    for pid in all_pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for entry in environment:
            if entry.startswith(prefix) and look_at(pid) is not None:
                found.setdefault(entry[len(prefix) :].decode(errors="replace"), set()).add(pid)
    return found


def engines_of_nobody(owned: Iterable[int]) -> list[Seen]:
    """Processes that look like an engine or a part of Ray and are not in `owned`: what earlier runs left behind."""
    known = set(owned) | {os.getpid()}
    seen = (look_at(pid) for pid in all_pids() if pid not in known)
    return [process for process in seen if process is not None and _ENGINE.search(process.title)]


def cores_used(pids: Iterable[int], window_s: float) -> float:
    """CPU cores that these processes keep busy, over a window in seconds. Blocks for that long."""
    listed = list(pids)
    before = _ticks(listed)
    began = time.monotonic()
    time.sleep(window_s)
    return (_ticks(listed) - before) / _TICKS_PER_S / (time.monotonic() - began)


def machine_cores_used(window_s: float) -> float:
    """CPU cores that the whole machine keeps busy, over a window in seconds. Blocks for that long."""
    busy = _machine_busy()
    began = time.monotonic()
    time.sleep(window_s)
    return (_machine_busy() - busy) / _TICKS_PER_S / (time.monotonic() - began)


def busiest(window_s: float, count: int) -> list[tuple[Seen, float]]:
    """The processes that take the most CPU, in cores, over a window in seconds. Blocks for that long."""
    before = {pid: cpu_ticks(pid) or 0 for pid in all_pids()}
    began = time.monotonic()
    time.sleep(window_s)
    elapsed = time.monotonic() - began
    used = {pid: (cpu_ticks(pid) or start) - start for pid, start in before.items() if pid != os.getpid()}
    top = sorted(used, key=lambda pid: used[pid], reverse=True)[:count]
    found = [(look_at(pid), used[pid] / _TICKS_PER_S / elapsed) for pid in top if used[pid] > 0]
    return [(seen, cores) for seen, cores in found if seen is not None]


def cpu_model() -> str:
    """What the kernel calls the processor, empty if it does not say."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _ticks(pids: Iterable[int]) -> int:
    return sum(cpu_ticks(pid) or 0 for pid in pids)


def _machine_busy() -> int:
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    # user, nice, system, irq, softirq; neither idle nor waiting for a disk, and not what a hypervisor took.
    return fields[0] + fields[1] + fields[2] + fields[5] + fields[6]
