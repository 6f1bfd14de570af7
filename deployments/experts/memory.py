"""What this process takes of the machine's memory."""

from __future__ import annotations

import os

import psutil

from deployments.processes import proportional_memory


def process_memory() -> tuple[int, int]:
    """Resident and proportional set size of this process in bytes."""
    return psutil.Process().memory_info().rss, proportional_memory([os.getpid()])
