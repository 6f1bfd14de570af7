"""A Ray cluster of several nodes on this machine, at loopback: Ray's own cluster utility, in a process of its own.

In a process of its own because Ray reads its environment when it is imported. As a program, it reads from its standard input how
many cores each further node is to offer, and answers with the address of the cluster and the process id of the node's raylet.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from deployments.head.environment import ray_environment
from deployments.processes import kill_all, processes_of

ROOT = Path(__file__).parents[2]
OBJECT_STORE_BYTES = 78_643_200
STOP_S = 30.0


class RayNode:
    """One node: its raylet, and whatever that has started."""

    def __init__(self, address: str, raylet: int) -> None:
        self.address = address
        """Of the cluster that it belongs to."""
        self._raylet = psutil.Process(raylet)

    def processes(self) -> list[psutil.Process]:
        """Of this node, the raylet first; empty once it is lost."""
        try:
            return [self._raylet, *self._raylet.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def holds(self, process: psutil.Process) -> bool:
        """Whether a process runs on this node."""
        return process in self.processes()

    def lose(self) -> None:
        """End the node as a machine ends that loses its power: all its processes at once."""
        for process in self.processes():
            process.kill()


class RayNodes:
    """The cluster. Its first node is the head, and the only one that has Ray's own control processes."""

    def __enter__(self) -> Self:
        self._marker = uuid.uuid4().hex
        # Short, because Unix socket paths below it are limited to 107 bytes.
        self._folder = tempfile.mkdtemp(prefix="pmn-")
        ours = {
            name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POINTSMAN_", "RAY_"))
        }
        self._output = Path(self._folder, "nodes.err")
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.ray_nodes", self._folder],
                env=ours | ray_environment(self._marker, at_loopback=True) | {"RAY_TMPDIR": self._folder},
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        return self

    def add(self, cpus: int) -> RayNode:
        """A further node that offers so many cores. Raises `RuntimeError` if it does not start."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the nodes' process has no pipes")
        stdin.write(f"{cpus}\n")
        stdin.flush()
        for line in stdout:
            if line.startswith("{"):
                told = json.loads(line)
                return RayNode(told["address"], told["raylet"])
        raise RuntimeError(f"a Ray node did not start: {self._output.read_text()[-2000:]}")

    def processes(self) -> list[psutil.Process]:
        """Of all nodes, Ray's own control processes among them."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        kill_all(processes_of(self._marker), 1.0)
        shutil.rmtree(self._folder, ignore_errors=True)


def main() -> None:
    """Start a node for every line, until there are no more."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for line in sys.stdin:
        settings = {"num_cpus": int(line), "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        if cluster.head_node is None:
            # Where Ray also writes down the address of the cluster, which everybody on the machine would find otherwise.
            folder = Path(sys.argv[1], "ray")
            folder.mkdir()
            settings["temp_dir"] = str(folder)
        node = cluster.add_node(**settings)
        (raylet,) = node.all_processes["raylet"]
        sys.stdout.write(json.dumps({"address": cluster.address, "raylet": raylet.process.pid}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
