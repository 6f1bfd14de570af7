"""A stand-in for a cluster's processes: a head, a replica below it, an engine below that. Run as a script.

Arguments: state directory, `tidy` or `leaky`. A tidy engine dies with its replica and the replica with the head; a
leaky engine stays.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from deployments.head.state import ClusterState, Phase, write_state
from loadtests.machine import tree

WAIT = "import sys, time; from deployments.processes import die_with_parent\n"
TIDY = WAIT + "die_with_parent(int(sys.argv[1]))\n"
REPLICA = (
    "import os, subprocess\n"
    "subprocess.Popen(['VLLM::EngineCore', '-c', {engine!r}, str(os.getpid())], executable={python!r})\n"
    "time.sleep(600)\n"
)


def spawn_head(state_dir: Path, manner: str, cluster_id: str) -> subprocess.Popen[bytes]:
    """Start the head in a session of its own, marked, and wait until all its processes are there."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(state_dir), manner, cluster_id],
        env=os.environ | {"POINTSMAN_CLUSTER_ID": cluster_id, "PYTHONPATH": str(Path(__file__).parents[3])},
        start_new_session=True,
    )
    deadline = time.monotonic() + 20
    while not (state_dir / "cluster.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def main() -> None:
    state_dir, manner, cluster_id = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    engine = (TIDY if manner == "tidy" else WAIT) + "time.sleep(600)\n"
    replica = TIDY + REPLICA.format(engine=engine, python=sys.executable)
    subprocess.Popen(["ray::ServeReplica:dense", "-c", replica, str(os.getpid())], executable=sys.executable)
    while len(tree(os.getpid())) < 3:
        time.sleep(0.02)
    write_state(
        state_dir,
        ClusterState(cluster_id, os.getpid(), "made-up.yaml", "127.0.0.1", 1, Phase.READY, started_at=time.time()),
    )
    time.sleep(600)


if __name__ == "__main__":
    main()
