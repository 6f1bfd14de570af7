"""Empties the Ray node of a pod before the pod ends: `python -m deployments.render.drain --seconds N`, which rendered pods run.

Ray is told that the node goes, so Serve starts the replicas that it has elsewhere, and lets each finish what it has once its
successor serves. Without it, a pod that Kubernetes stops breaks off every answer that is under way.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

import psutil

REPLICA: Final = "ray::ServeReplica:"
POLL_S: Final = 0.5
RETRY_S: Final = 2.0
TRY_S: Final = 30.0
"""Seconds that one try to reach Ray may take."""


def replicas_here() -> int:
    """Serve replicas among the processes of this pod, which sees no others."""
    return sum(title.startswith(REPLICA) for title in map(_title, psutil.process_iter()))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def drain(address: str, node: str, seconds: float, left: Callable[[], int] = replicas_here) -> bool:
    """Have the node (hexadecimal id) emptied; returns whether it was within `seconds`, as `left` counts what is there."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the pod is being stopped"]
    command += ["--deadline-remaining-seconds", str(int(seconds))]
    deadline = time.monotonic() + seconds
    told = False
    while left():
        if time.monotonic() > deadline:
            return False
        if told:
            time.sleep(POLL_S)
            continue
        # Ray's head may be away, on the machine that is being emptied. Until it is told, what runs goes on all the same.
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TRY_S)
        except subprocess.TimeoutExpired:
            continue
        told = done.returncode == 0
        if not told:
            sys.stderr.write(done.stderr[-1000:])
            time.sleep(RETRY_S)
    return True


def main() -> int:
    """Drain the node of this pod; returns the exit status, which Kubernetes notes and does not act on."""
    parser = argparse.ArgumentParser(prog="drain")
    parser.add_argument("--seconds", type=float, required=True, help="how long it may take")
    seconds = parser.parse_args().seconds
    if not replicas_here():
        return 0
    import ray

    deadline = time.monotonic() + seconds
    while True:
        try:
            ray.init(address="auto", log_to_driver=False)
            break
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            sys.stderr.write(f"{error}\n")
            if not replicas_here() or time.monotonic() > deadline:
                return 1
            time.sleep(RETRY_S)
    context = ray.get_runtime_context()
    address, node = str(context.gcs_address), str(context.get_node_id())
    ray.shutdown()
    return 0 if drain(address, node, deadline - time.monotonic()) else 1


if __name__ == "__main__":
    sys.exit(main())
