"""The processes of a running cluster, as the operating system shows them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import psutil

from deployments.head.state import ClusterState, read_state
from deployments.processes import processes_in_session, processes_of
from tests.clusters import RunningCluster

POOL = "ray::ServeReplica:pools-{model}:Pool-{pool}"
POOLS = "ray::ServeReplica:pools-{model}:ExpertPools"
REPLICA = "ray::ServeReplica:model-{model}:"
INGRESS = "ray::ServeReplica:ingress:"
ENGINE = "VLLM::EngineCore"
_UNNAMED_ENGINE = "multiprocessing.spawn"
"""What an engine is called before vLLM names it, and after, where its environment leaves no room for the name: that
depends on the order of its variables, which Ray shuffles."""


def state_of(cluster: RunningCluster) -> ClusterState:
    """What the head has written down."""
    state = read_state(cluster.state_dir)
    assert state is not None
    return state


def all_of(cluster: RunningCluster) -> list[psutil.Process]:
    """Every process of the cluster: by the marker, by the session of the head, and the head itself."""
    state = state_of(cluster)
    return _processes({state.pid, *processes_of(state.cluster_id), *processes_in_session(state.pid)})


def replicas_of(cluster: RunningCluster, model: str) -> list[psutil.Process]:
    """The actors of a model."""
    return [process for process in all_of(cluster) if title(process).startswith(REPLICA.format(model=model))]


def pool_of(cluster: RunningCluster, model: str, pool: str) -> list[psutil.Process]:
    """The actors of one of a model's pools of experts."""
    return [one for one in all_of(cluster) if title(one).startswith(POOL.format(model=model, pool=pool))]


def keeper_of(cluster: RunningCluster, model: str) -> psutil.Process:
    """The actor that knows a model's pools."""
    (found,) = (one for one in all_of(cluster) if title(one).startswith(POOLS.format(model=model)))
    return found


def ingress_of(cluster: RunningCluster) -> psutil.Process:
    """The process that reads the socket."""
    (found,) = (process for process in all_of(cluster) if title(process).startswith(INGRESS))
    return found


def engine_of(cluster: RunningCluster, model: str) -> psutil.Process:
    """The engine process of a model's only replica."""
    (replica,) = replicas_of(cluster, model)
    (found,) = (process for process in replica.children(recursive=True) if is_engine(process))
    return found


def is_engine(process: psutil.Process) -> bool:
    """Whether a process is a vLLM engine core."""
    name = title(process)
    return name.startswith(ENGINE) or _UNNAMED_ENGINE in name


def title(process: psutil.Process) -> str:
    """What `ps` shows, empty for a process that is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def unused_port() -> int:
    """A TCP port of the loopback interface that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(condition: Callable[[], object], timeout_s: float, every_s: float = 0.05) -> float:
    """Seconds until `condition` holds. Raises `TimeoutError`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_s:
            raise TimeoutError(f"not so within {timeout_s} s")
        time.sleep(every_s)
    return time.monotonic() - started


def _processes(pids: set[int]) -> list[psutil.Process]:
    found = []
    for pid in sorted(pids):
        try:
            found.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    return found
