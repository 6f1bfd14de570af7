"""Clients that go away, and clients that read too slowly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest

from loadtests.disconnects import Departure, DisconnectPlan, Leaving, disconnect_all
from loadtests.kv_probe import metrics_probe
from loadtests.targets import parse_target
from tests.clusters import ROOT, RunningCluster
from tests.integration.access_keys import add_key
from tests.integration.cluster_processes import wait_for
from tests.integration.raw_http import bearer, post

pytestmark = pytest.mark.timeout(500)

BACK_S = 3 * 1.0
"""Three times the second within which memory has to be free again."""


def test_memory_comes_back_when_clients_leave(running_cluster: RunningCluster) -> None:
    async def leave() -> tuple[float, list[Departure]]:
        target = parse_target(running_cluster.url)
        plan = DisconnectPlan(target, "dense", count=18, crowd=36)
        async with metrics_probe(target, "dense") as probe:
            return await disconnect_all(plan, probe, lambda _departure: None)

    base, departures = asyncio.run(leave())
    assert base == 0.0
    for kind in Leaving:
        of_kind = [departure for departure in departures if departure.kind is kind]
        assert len(of_kind) == 6
        assert max(departure.held for departure in of_kind) > 0
    assert [d for d in departures if d.seconds is None or d.seconds > BACK_S] == []

    def at_rest() -> bool:
        with running_cluster.client() as client:
            lines = client.get("/metrics").text.splitlines()
        gauges = ("pointsman_requests_in_flight", "pointsman_engine_running", "pointsman_engine_waiting")
        return all(float(line.split()[-1]) == 0 for line in lines if line.startswith(gauges))

    wait_for(at_rest, BACK_S)


HELD_BYTES = 2**20
"""What the operating system and the ingress hold of an answer that nobody reads, about."""


def body(model: str, tokens: int, n: int = 1) -> bytes:
    messages = [{"role": "user", "content": "Hello"}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": tokens, "n": n, "stream": True}).encode()


def stream_alone(cluster: RunningCluster, key: str) -> float:
    """Seconds that a stream of 20 tokens of the model `alpha` takes."""
    began = time.monotonic()
    with cluster.client(key=key) as client:
        answer = client.post("/v1/chat/completions", content=body("alpha", 20))
    assert answer.text.rstrip().endswith("[DONE]")
    return time.monotonic() - began


def running(cluster: RunningCluster, key: str, model: str) -> float:
    """Sequences that the engine of a model runs."""
    with cluster.client(key=key) as client:
        lines = client.get("/metrics").text.splitlines()
    gauge = f'pointsman_engine_running{{model="{model}"'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(gauge))


def test_a_slow_reader_is_cut_and_costs_others_nothing(simulated_cluster: RunningCluster) -> None:
    """The model `beta` makes 8 texts of 2,000 tokens in seconds, 3.5 MB; nobody reads them."""
    key = add_key(simulated_cluster, "slow readers").key
    parts = urlsplit(simulated_cluster.url)
    alone = min(stream_alone(simulated_cluster, key) for _ in range(3))
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(3):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131_072)
            connection.connect((parts.hostname, parts.port))
            connection.sendall(post(body("beta", 2000, 8), bearer(key)))
            slow.append(connection)
        wait_for(lambda: running(simulated_cluster, key, "beta") == 24, 10.0)
        assert stream_alone(simulated_cluster, key) < 2 * alone + 0.5
        # They are ended, though they still hold their connections.
        wait_for(lambda: running(simulated_cluster, key, "beta") == 0, 30.0)
        for connection in slow:
            connection.settimeout(20.0)
            received = b""
            with contextlib.suppress(ConnectionError):
                # The end is that of the connection, or of the body: it depends on where the jam was noticed.
                while not received.endswith(b"\r\n0\r\n\r\n") and (piece := connection.recv(65_536)):
                    received += piece
            assert received.startswith(b"HTTP/1.1 200")
            assert b"[DONE]" not in received
            assert len(received) < 2 * HELD_BYTES
    assert stream_alone(simulated_cluster, key) < 2 * alone + 0.5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_disconnects(running_cluster: RunningCluster) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "loadtests.disconnects",
            "--url",
            running_cluster.url,
            "--count",
            "200",
            "--within",
            str(BACK_S),
        ],
        cwd=ROOT,
        env=running_cluster.env,
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
