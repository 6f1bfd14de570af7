"""What every test may use: free ports, state directories, and running clusters that tests share."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.processor import stores_fp8_kv
from tests.clusters import UP_TIMEOUT_S, RunningCluster, local_config, simulated_config, start_cluster, stop_cluster

TESTS = Path(__file__).parent
# Fast ones first: a broken rule shows in seconds, before the first engine starts.
ORDER = ("unit", "property", "simulation", "integration", "faults")
# What is under these folders runs real processes, so it is marked `integration` without every file saying so.
REAL_PROCESSES = ("integration", "faults")
SHARED_CLUSTERS = ("running_cluster", "simulated_cluster")
"""Tests of one of these follow one another, and it is stopped after the last: on two cores an idle one costs all others."""
LEFT_OUT = pytest.StashKey[int]()
"""Tests that this processor cannot run."""
ENVIRONMENTS = pytest.StashKey[dict[str, dict[str, str]]]()
"""Of the shared clusters that run, by fixture."""


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart() -> None:
    """Processes that tests start must hear Ctrl-C, even where a shell ran pytest in the background and so muted it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _folder_of(item: pytest.Item) -> str:
    if not item.path.is_relative_to(TESTS):
        return ""
    return item.path.relative_to(TESTS).parts[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick ones first, then by the cluster they share, then by folder, slow ones last; mark what runs real processes."""
    _leave_out_what_the_processor_cannot(config, items)
    for item in items:
        if _folder_of(item) in REAL_PROCESSES:
            item.add_marker(pytest.mark.integration)
        if _shared(item) and item.get_closest_marker("timeout") is None:
            # The first test that uses a shared cluster waits for its start.
            item.add_marker(pytest.mark.timeout(UP_TIMEOUT_S + 120))

    def rank(item: pytest.Item) -> tuple[bool, bool, int, int]:
        folder = _folder_of(item)
        place = ORDER.index(folder) if folder in ORDER else len(ORDER)
        slow = item.get_closest_marker("slow") is not None
        return folder in REAL_PROCESSES, slow, _shared_rank(item), place

    items.sort(key=rank)


def _leave_out_what_the_processor_cannot(config: pytest.Config, items: list[pytest.Item]) -> None:
    if stores_fp8_kv():
        return
    left_out = [item for item in items if item.get_closest_marker("fp8_kv") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
        config.stash[LEFT_OUT] = len(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was not tested here."""
    count = config.stash.get(LEFT_OUT, 0)
    if count:
        terminalreporter.write_line(
            f"{count} tests of a KV cache in fp8 were left out: this processor has neither AVX-512 nor AMX."
        )


def _shared_rank(item: pytest.Item) -> int:
    used = _shared(item)
    return SHARED_CLUSTERS.index(used[0]) if used else len(SHARED_CLUSTERS)


def _shared(item: pytest.Item | None) -> list[str]:
    names = getattr(item, "fixturenames", ())
    return [name for name in SHARED_CLUSTERS if name in names]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the shared clusters that the next test does not use. The order above says that no later one does either."""
    running = item.config.stash.get(ENVIRONMENTS, {})
    for name in _shared(item):
        if name in running and name not in _shared(nextitem):
            stop_cluster(running.pop(name))


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback interface that nothing listened on a moment ago."""
    return _port()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An empty folder for a cluster's state (keys, traces, logs), private to the test."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


def _shared_until_unused(name: str, cluster: RunningCluster, config: pytest.Config) -> Iterator[RunningCluster]:
    """Yield the cluster; `pytest_runtest_teardown` stops it, or the end of the session if it could not."""
    running = config.stash.setdefault(ENVIRONMENTS, {})
    running[name] = cluster.env
    yield cluster
    if running.pop(name, None) is not None:
        stop_cluster(cluster.env)


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[RunningCluster]:
    """The embedded default with real engines. Shared: leave it as you found it, all models ready."""
    state_dir: Path = tmp_path_factory.mktemp("cluster") / "state"
    cluster = start_cluster(local_config(), state_dir, _port())
    yield from _shared_until_unused("running_cluster", cluster, pytestconfig)


@pytest.fixture(scope="session")
def simulated_cluster(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[RunningCluster]:
    """Two simulated models, the second a sparse one, quick and surer of itself; keys required, little patience with slow clients.

    What heats experts counts for a short time only.
    """
    state_dir: Path = tmp_path_factory.mktemp("simulated") / "state"
    config = simulated_config("alpha", "beta") | {
        "keys": {"required": True},
        "ingress": {"limits": {"slow_client_timeout_s": 3}},
        "experts": {"half_life_s": 1, "dwell_s": 0.5, "min_tokens": 50},
    }
    models = config["models"]
    assert isinstance(models, dict)
    config["routing"] = {"code_role": "strong", "feedback": {"escalate_to": ["role_beta"]}}
    models["alpha"]["engine"]["simulated"] = {"confidence": 0.4}
    models["beta"]["engine"]["simulated"] = {
        "decode_step_base_s": 0.002,
        "decode_step_per_seq_s": 0,
        "prefill_tokens_per_s": 4000,
        "kv_blocks": 512,
        "experts": {"layers": 3, "experts": 8},
    }
    models["beta"]["kind"] = "sparse"
    cluster = start_cluster(config, state_dir, _port())
    yield from _shared_until_unused("simulated_cluster", cluster, pytestconfig)
