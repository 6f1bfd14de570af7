"""A model without a replica while nobody asks for it, on a real cluster of simulated engines: started by a request, parked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clusters import RunningCluster, simulated_config, start_cluster, stop_cluster

CHAT = "/v1/chat/completions"
PARKS_AFTER_S = 2.0
START_S = 60.0


@pytest.fixture
def cluster(state_dir: Path, free_port: int) -> Iterator[RunningCluster]:
    config: dict[str, Any] = simulated_config("standing", "heavy")
    config["models"]["heavy"]["replicas"] |= {
        "min": 0,
        "max": 1,
        "start_timeout_s": START_S,
        "scaling": {"upscale_delay_s": 0, "downscale_delay_s": 0, "downscale_to_zero_delay_s": PARKS_AFTER_S},
    }
    started = start_cluster(config, state_dir, free_port)
    yield started
    stop_cluster(started.env)


def ask(client: httpx.Client) -> httpx.Response:
    return client.post(
        CHAT, json={"model": "heavy", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    )


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def replicas(client: httpx.Client) -> int:
    found: int = client.get("/readyz").json()["models"]["heavy"]["replicas"]
    return found


def test_the_first_request_starts_it_and_idleness_parks_it(cluster: RunningCluster) -> None:
    with cluster.client() as client:
        assert client.get("/readyz").status_code == 200
        assert replicas(client) == 0
        # Nobody asked for it yet, so nobody started it.
        time.sleep(2.0)
        assert replicas(client) == 0
        refused = ask(client)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_starting")
        assert 0 < int(refused.headers["retry-after"]) <= START_S
        wait_until(lambda: ask(client).status_code == 200, timeout_s=START_S)
        assert replicas(client) == 1
        wait_until(lambda: replicas(client) == 0, timeout_s=60)
        assert client.get("/readyz").status_code == 200
        # What is known of its start now is what the next caller is told.
        again = ask(client)
        assert again.status_code == 503
        assert int(again.headers["retry-after"]) < int(refused.headers["retry-after"])
        wait_until(lambda: ask(client).status_code == 200, timeout_s=START_S)
