"""What this process takes of the machine's memory."""

from __future__ import annotations

from pathlib import Path


def process_memory() -> tuple[int, int]:
    """Resident and proportional set size of this process in bytes."""
    sizes = {"Rss": 0, "Pss": 0}
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) * 1024
    return sizes["Rss"], sizes["Pss"]
