"""A cluster to measure: the one that runs, or one started for the measurement and stopped after it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Self

from deployments.head.state import ClusterState, read_state
from loadtests.machine import cluster_processes, look_at, tree


class ClusterError(RuntimeError):
    """The cluster is not in the state that a measurement needs. The message says what to do."""


def pointsman(*arguments: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run one command of the command line and return what it printed; it may fail."""
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def served_models(url: str, key: str | None, timeout_s: float = 5.0) -> list[str]:
    """Names in `/v1/models`, empty if nothing answers there."""
    request = urllib.request.Request(f"{url}/v1/models")  # noqa: S310 - the scheme was checked by `parse_target`
    if key is not None:
        request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            listed = json.load(response)
    except (urllib.error.URLError, OSError, ValueError):
        return []
    return [str(entry["id"]) for entry in listed.get("data", [])]


def _quietly(_: str) -> None:
    """Says nothing."""


class RunningCluster:
    """Starts a cluster unless one answers at `url`; as a context manager it stops only what it started."""

    def __init__(
        self, url: str, config: Path, state_dir: Path, key: str | None = None, say: Callable[[str], None] = _quietly
    ) -> None:
        self.url = url
        self.started_here = False
        self._config = config
        self._state_dir = state_dir
        self._key = key
        self._say = say

    def __enter__(self) -> Self:
        if not served_models(self.url, self._key):
            self.started_here = True
            try:
                self._up()
            except BaseException:
                self._down()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.started_here:
            self._down()

    def pids(self) -> set[int]:
        """Processes of the cluster: those below its head, and those that carry its marker."""
        state = self.state()
        if state is None:
            return set().union(*cluster_processes().values())
        return {pid for pid in tree(state.pid) if look_at(pid)} | cluster_processes().get(state.cluster_id, set())

    def state(self) -> ClusterState | None:
        """What its head wrote down last."""
        return read_state(self._state_dir)

    def wait_for(self, model: str, timeout_s: float = 300.0) -> None:
        """Until the cluster lists the model. Raises `ClusterError`."""
        deadline = time.monotonic() + timeout_s
        while model not in (listed := served_models(self.url, self._key)):
            if time.monotonic() > deadline:
                names = ", ".join(listed) or "none"
                raise ClusterError(f"the cluster at {self.url} does not serve {model!r}; it serves {names}")
            time.sleep(0.5)

    def _up(self) -> None:
        self._say(f"no cluster answers at {self.url}; starting one, which takes a minute or two")
        done = pointsman("up", "--config", str(self._config), "--state-dir", str(self._state_dir))
        if done.returncode != 0:
            raise ClusterError(f"`pointsman up` failed: {done.stderr.strip()[-600:] or done.stdout.strip()[-600:]}")

    def _down(self) -> None:
        pointsman("down", "--state-dir", str(self._state_dir), timeout_s=120.0)
