"""Replicas that are killed and stopped, two of them, under load. Simulated engines: it is about what surrounds them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.clusters import RunningCluster, simulated_config, start_cluster, stop_cluster
from tests.faults.load import CHAT, SteadyLoad, Streamed, chat
from tests.integration.cluster_processes import ingress_of, replicas_of, unused_port, wait_for

pytestmark = pytest.mark.timeout(300)

MODEL = "alpha"
REPLACED_S = 60.0
OUT_OF_ROUTING_S = 3 * 5.0
ERROR_S = 3 * 2.0
REFUSED_S = 3 * 0.1
"""Goals, three times each: the machine that runs the tests may be busy."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """One simulated model in two replicas."""
    config = simulated_config(MODEL)
    models = config["models"]
    assert isinstance(models, dict)
    models[MODEL]["replicas"] = {"min": 2, "max": 2, "cpus": 0.1, "drain_timeout_s": 5}
    config["ray"] = {"num_cpus": 4, "health_check_period_s": 1, "health_check_timeout_s": 3}
    started = start_cluster(config, tmp_path_factory.mktemp("pair") / "state", unused_port())
    yield started
    stop_cluster(started.env)


def ready_replicas(cluster: RunningCluster) -> int:
    with cluster.client(timeout_s=5.0) as client:
        found: int = client.get("/readyz").json()["models"][MODEL]["replicas"]
    return found


@pytest.fixture
def whole(cluster: RunningCluster) -> RunningCluster:
    """The cluster with both replicas in routing."""
    wait_for(lambda: ready_replicas(cluster) == 2, REPLACED_S)
    return cluster


def kill(pid: int) -> float:
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def test_a_chat_goes_back_to_the_replica_that_holds_its_prefix(whole: RunningCluster) -> None:
    seen = set()
    with whole.client() as client:
        for number in range(6):
            messages = [{"role": "user", "content": f"Chat {number}: " + "tell me more. " * 30}]
            where = []
            for _ in range(3):
                answer = client.post(CHAT, json=chat(MODEL, 4) | {"messages": messages})
                told = answer.json()["pointsman"]
                where.append(answer.headers["x-pointsman-replica"])
                assert told["replica"] == where[-1]
                assert told["replica_reason"].startswith("holds" if len(where) > 1 else "least work")
                messages += [answer.json()["choices"][0]["message"], {"role": "user", "content": "And then?"}]
            assert len(set(where)) == 1
            seen.add(where[0])
    # New chats are spread all the same.
    assert len(seen) == 2


def test_no_plain_request_is_lost_when_a_replica_is_killed(whole: RunningCluster) -> None:
    # The longer answers see to it that some are under way on whichever replica is killed.
    with SteadyLoad(whole, chat(MODEL, 8), per_s=5) as load, SteadyLoad(whole, chat(MODEL, 60), per_s=4) as longer:
        for _ in range(3):
            time.sleep(1.0)
            victim, _ = replicas_of(whole, MODEL)
            kill(victim.pid)
            wait_for(lambda gone=victim: not gone.is_running() and ready_replicas(whole) == 2, REPLACED_S)
        time.sleep(0.5)
    assert len(load.outcomes) > 25
    assert load.failed == longer.failed == []
    # Some were under way on the killed one, so this was no accident.
    assert max(outcome.attempts for outcome in load.outcomes + longer.outcomes) >= 2
    with whole.client() as client:
        retries = [line for line in client.get("/metrics").text.splitlines() if line.startswith("pointsman_retries")]
    assert sum(float(line.split()[-1]) for line in retries) >= 1


def test_a_stream_that_loses_its_replica_says_so(whole: RunningCluster) -> None:
    streams = [Streamed(whole, chat(MODEL, 300)) for _ in range(8)]
    wait_for(lambda: all(stream.texts > 3 for stream in streams), 30.0)
    victim, _ = replicas_of(whole, MODEL)
    killed = kill(victim.pid)
    for stream in streams:
        stream.join()
    lost = [stream for stream in streams if not stream.done]
    # The load is spread, so about half of them were on each.
    assert 2 <= len(lost) <= 6
    for stream in lost:
        assert stream.ended_at is not None
        assert stream.ended_at - killed < ERROR_S
        assert not stream.broken
        assert stream.error is not None
        assert stream.error["code"] == "replica_lost"
        assert 3 < stream.texts < 300
    for stream in streams:
        assert stream in lost or (stream.error is None and stream.texts >= 300)


def test_all_replicas_gone(whole: RunningCluster) -> None:
    stream = Streamed(whole, chat(MODEL, 300))
    wait_for(lambda: stream.texts > 3, 30.0)
    for replica in replicas_of(whole, MODEL):
        kill(replica.pid)
    wait_for(lambda: ready_replicas(whole) == 0, 3.0)
    with whole.client(timeout_s=30.0) as client:
        for endpoint, body in (
            (CHAT, chat(MODEL, 8)),
            (CHAT, chat("strong", 8, stream=True)),
            (CHAT, chat("auto", 8)),
            ("/v1/completions", {"model": MODEL, "prompt": "Hello", "max_tokens": 8}),
        ):
            began = time.monotonic()
            answer = client.post(endpoint, json=body)
            assert time.monotonic() - began < REFUSED_S
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "server_error"
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["models"][MODEL]["ready"]) == (503, False)
        assert ready.json()["models"][MODEL]["reason"]
        assert client.get("/livez").status_code == 200
        assert client.get("/v1/models").json()["data"][0]["ready"] is False
    stream.join()
    assert not stream.done
    assert stream.error is not None
    # They come back by themselves, and the cluster answers as before.
    whole.wait_ready(REPLACED_S)
    with whole.client() as client:
        assert client.post(CHAT, json=chat(MODEL, 8)).status_code == 200


def test_a_stopped_replica_is_left_out_and_taken_back(whole: RunningCluster) -> None:
    with SteadyLoad(whole, chat(MODEL, 8), per_s=5) as load:
        time.sleep(0.5)
        victim, _ = replicas_of(whole, MODEL)
        victim.suspend()
        try:
            stopped = time.monotonic()
            assert wait_for(lambda: ready_replicas(whole) == 1, OUT_OF_ROUTING_S) < OUT_OF_ROUTING_S
            out = time.monotonic()
            time.sleep(1.0)
        finally:
            victim.resume()
        wait_for(lambda: ready_replicas(whole) == 2, OUT_OF_ROUTING_S)
    # The replica was only late, so it is the same one, and what had gone there was answered after all.
    assert victim.is_running()
    assert load.failed == []
    after = [outcome for outcome in load.outcomes if outcome.began > out]
    assert after
    assert max(outcome.seconds for outcome in after) < 3.0
    assert stopped < out


def test_a_replica_that_stays_stopped_is_replaced(whole: RunningCluster) -> None:
    with SteadyLoad(whole, chat(MODEL, 8), per_s=5, timeout_s=60.0) as load:
        time.sleep(0.5)
        victim, _ = replicas_of(whole, MODEL)
        victim.suspend()
        wait_for(lambda: not victim.is_running() and ready_replicas(whole) == 2, REPLACED_S)
    # What had gone there was tried again on the other one.
    assert load.failed == []


def test_an_ingress_that_is_killed_comes_back(whole: RunningCluster) -> None:
    ingress = ingress_of(whole)
    kill(ingress.pid)
    ingress.wait(5.0)
    whole.wait_ready(REPLACED_S)
    assert ingress_of(whole).pid != ingress.pid
    with whole.client() as client:
        assert client.post(CHAT, json=chat(MODEL, 8)).status_code == 200
    assert ready_replicas(whole) == 2


def test_clients_are_not_left_waiting_by_any_of_it(whole: RunningCluster) -> None:
    """Nothing of the faults before has stuck: no request in flight, no sequence in an engine."""

    def at_rest() -> bool:
        with whole.client() as client:
            text = client.get("/metrics").text
        gauges = ("pointsman_requests_in_flight", "pointsman_engine_running", "pointsman_engine_waiting")
        lines = [line for line in text.splitlines() if line.startswith(gauges)]
        return bool(lines) and all(float(line.split()[-1]) == 0 for line in lines)

    wait_for(at_rest, 5.0)
